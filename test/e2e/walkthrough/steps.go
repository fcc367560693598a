package walkthrough

// The commands of the walkthrough, as the document gives them.
const (
	namespace = "test-istio-mtls"
	outside   = "test-istio-mtls-without-injection"
	// Image has nginx, sh, wget, curl and sleep; it is the document's own name for it.
	Image = "registry.company.network/localrepo/all-in-one-image:0.1"

	enableModule = `d8 k create -f -<<EOF
apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata:
  name: istio
spec:
  version: 2
  enabled: true
EOF`

	createNamespace = `d8 k create namespace test-istio-mtls`
	labelInjection  = `d8 k label namespace test-istio-mtls istio-injection=enabled`
	labelPodPolicy  = `d8 k label namespace test-istio-mtls security.deckhouse.io/pod-policy=privileged`
	createWebserver = `d8 k -n test-istio-mtls create deployment webserver --image=` + Image + ` --port 80 -- /bin/sh -c 'nginx -g "daemon off;"'`
	exposeWebserver = `d8 k -n test-istio-mtls expose deployment webserver --port=80`
	getPods         = `d8 k -n test-istio-mtls get pods -l app=webserver -o wide`
	createClient    = `d8 k -n test-istio-mtls create deployment client --image=` + Image + ` -- /bin/sh -c "sleep infinity"`
	callFromMesh    = `d8 k -n test-istio-mtls exec -ti deployments/client -- wget -S --spider --timeout 1 webserver`
	createOutside   = `d8 k create namespace test-istio-mtls-without-injection`
	createAlpine    = `d8 k -n test-istio-mtls-without-injection create deployment alpine --image=` + Image + ` -- /bin/sh -c "sleep infinity"`
	callFromOutside = `d8 k -n test-istio-mtls-without-injection exec -ti deployments/alpine -- wget -S --spider --timeout 1 webserver.test-istio-mtls`

	// Beyond the document: the whole page, and what STRICT and the overrides do.
	getFromMesh    = `d8 k -n test-istio-mtls exec deployments/client -- curl -sS -i --max-time 5 http://webserver/`
	getFromOutside = `d8 k -n test-istio-mtls-without-injection exec deployments/alpine -- curl -sS -i --max-time 5 http://webserver.test-istio-mtls/`
	getByPodIP     = `d8 k -n test-istio-mtls exec deployments/client -- curl -sS -i --max-time 5 http://%s/`
)

// createPolicy is a line that makes the namespace-wide policy.
func createPolicy(ns, mode string) string {
	return `d8 k -n ` + ns + ` create -f -<<EOF
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata:
  name: default
spec:
  mtls:
    mode: ` + mode + `
EOF`
}

// changePolicy is a line that changes the mode of the namespace-wide policy.
func changePolicy(ns, mode string) string {
	return `d8 k -n ` + ns + ` patch peerauthentication default --type merge -p '{"spec":{"mtls":{"mode":"` + mode + `"}}}'`
}

// deletePolicy is a line that removes the namespace-wide policy.
func deletePolicy(ns string) string {
	return "d8 k -n " + ns + " delete peerauthentication default"
}
