package datapath

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// object is a piece of Envoy's configuration.
type object = map[string]any

func typed(name string, o object) object {
	o["@type"] = "type.googleapis.com/envoy." + name
	return o
}

// envoy: one worker per core, original buffers, no access log, no statistics that
// nobody reads. http makes the inbound side a HTTP connection manager.
func envoy(http bool) func(string, site) (program, error) {
	return func(path string, s site) (program, error) {
		cfg, err := envoyConfig(s, http)
		if err != nil {
			return program{}, err
		}
		b, err := json.MarshalIndent(cfg, "", "  ")
		if err != nil {
			return program{}, fmt.Errorf("encode the configuration: %w", err)
		}
		file, err := s.write("envoy.json", string(b))
		return program{name: path, args: []string{
			"-c", file, "--concurrency", strconv.Itoa(s.cores), "--use-dynamic-base-id", "-l", "error", "--disable-hot-restart",
		}, user: proxyUser}, err
	}
}

// envoyConfig is the static bootstrap of one side.
func envoyConfig(s site, http bool) (object, error) {
	host, port, err := net.SplitHostPort(s.target)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	target, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	listenPort, err := strconv.Atoi(strings.TrimPrefix(s.listen(), ":"))
	if err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	socket := func(host string, port int) object {
		return object{"socket_address": object{"address": host, "port_value": port}}
	}
	cluster := object{
		"name": "target", "type": "STATIC", "connect_timeout": "10s",
		// without limits that a load would meet
		"circuit_breakers": object{"thresholds": []object{{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}}},
		"load_assignment":  object{"cluster_name": "target", "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": socket(host, target)}}}}}},
	}
	chain := object{"filters": []object{envoyFilter(http && !s.client)}}
	tls := envoyTLS(s)
	if s.client {
		cluster["transport_socket"] = object{"name": "tls", "typed_config": typed("extensions.transport_sockets.tls.v3.UpstreamTlsContext", object{
			"common_tls_context": tls, "sni": serverName, "max_session_keys": 0,
		})}
	} else {
		chain["transport_socket"] = object{"name": "tls", "typed_config": typed("extensions.transport_sockets.tls.v3.DownstreamTlsContext", object{
			"common_tls_context": tls, "require_client_certificate": true, "disable_stateless_session_resumption": true, "disable_stateful_session_resumption": true,
		})}
	}
	return object{"static_resources": object{
		"listeners": []object{{"name": "in", "address": socket("0.0.0.0", listenPort), "filter_chains": []object{chain}}},
		"clusters":  []object{cluster},
	}}, nil
}

func envoyFilter(http bool) object {
	if !http {
		return object{"name": "tcp", "typed_config": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", object{
			"stat_prefix": "tcp", "cluster": "target", "idle_timeout": "0s",
		})}
	}
	return object{"name": "http", "typed_config": typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
		"stat_prefix": "http", "codec_type": "AUTO",
		"route_config": object{"virtual_hosts": []object{{
			"name": "all", "domains": []string{"*"}, "routes": []object{{"match": object{"prefix": "/"}, "route": object{"cluster": "target", "timeout": "0s"}}},
		}}},
		"http_filters": []object{{"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router", object{})}},
	})}
}

func envoyTLS(s site) object {
	other, uri := serverName, serverURI
	if !s.client {
		other, uri = clientName, clientURI
	}
	names := []object{{"san_type": "URI", "matcher": object{"exact": uri}}, {"san_type": "DNS", "matcher": object{"exact": other}}}
	return object{
		"tls_params": object{
			"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3", "ecdh_curves": []string{group},
		},
		"tls_certificates": []object{{"certificate_chain": object{"filename": s.cert}, "private_key": object{"filename": s.key}}},
		"validation_context": object{
			"trusted_ca": object{"filename": s.root}, "match_typed_subject_alt_names": names,
		},
	}
}
