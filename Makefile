.DEFAULT_GOAL := help
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(CURDIR)/bin/tools:$(PATH)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CLUSTER ?= podseal
NODES   ?= 2
SOAK    ?= 1h
GOBUILD  = CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags grpcnotrace -ldflags "-s -w -buildid= -X podseal.io/podseal/internal/version.Version=$(VERSION)"
GOTEST   = go test -timeout 15m
IMAGES   = bin/images

.PHONY: help build images demo demo-down test test-unit test-netns test-bench test-hack test-e2e soak lint gen gen-check bench bench-data bench-profile bench-own bench-programs bench-micro fuzz setup FORCE

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: ## bin/podseal and bin/podseal-proxy
	$(GOBUILD) -o bin/ ./cmd/podseal ./cmd/podseal-proxy

images: build bin/images ## bin/*.tar: the two images and the demo's all-in-one image
	bin/images podseal --binary bin/podseal --tag podseal.io/podseal:$(VERSION) --out bin/podseal.tar
	bin/images proxy --binary bin/podseal-proxy --tag podseal.io/podseal-proxy:$(VERSION) --out bin/podseal-proxy.tar
	bin/images all-in-one --tag registry.company.network/localrepo/all-in-one-image:0.1 --out bin/all-in-one.tar

bin/protocols.tar: bin/images FORCE # servers and clients for test-e2e; kept in the user's cache
	bin/images protocols --tag podseal.io/test/protocols:1 --out $@

bin/images: FORCE
	@mkdir -p bin && CGO_ENABLED=0 go build -C hack/images -o $(CURDIR)/bin/images .

bin/cluster: FORCE
	@mkdir -p bin && CGO_ENABLED=0 go build -C hack/cluster -o $(CURDIR)/bin/cluster .

# Another cluster is used only when the command line says so, not when a shell happens to have KUBECONFIG set.
OTHER = $(if $(filter command line,$(origin KUBECONFIG)),-kubeconfig "$(KUBECONFIG)" $(if $(HUB),-hub "$(HUB)") $(if $(IMAGE),-image "$(IMAGE)"))

demo: setup images bin/cluster ## local Kubernetes, install, the walkthrough, what was on the wire (KUBECONFIG=… uses yours)
	@go run ./test/e2e/demo -version $(VERSION) -cluster $(CLUSTER) -nodes $(NODES) $(OTHER)

demo-down: bin/cluster ## remove the demo's cluster
	bin/cluster down --name $(CLUSTER)

test: setup gen-check lint test-unit test-netns test-bench test-hack test-e2e ## everything; what .ci/run runs

test-unit: setup ## packages, with the race detector
	@./hack/setup browser
	$(GOTEST) -race $$(go list ./... | grep -v /test/)

test-netns: setup ## the data plane between network namespaces, and the bench in small (root)
	@./hack/setup protocols
	$(GOTEST) -count=1 ./test/netns/... ./test/bench/...

soak: setup ## traffic, attacks and faults for an hour (SOAK=15m is shorter); ends with what it began with (root)
	go test -count=1 -v -timeout 24h -run '^TestSoak$$' ./test/netns -soak $(SOAK)

test-bench: ## the figures that Podseal is judged by, beside other proxies, in two minutes (root)
	$(MAKE) bench BENCH=quick

test-hack: setup ## the local cluster and the image builder (root)
	cd hack/images && $(GOTEST) -count=1 ./...
	cd hack/cluster && $(GOTEST) -count=1 ./...

test-e2e: setup images bin/protocols.tar bin/cluster ## the walkthrough on a two-node cluster of its own (root)
	PODSEAL_VERSION=$(VERSION) $(GOTEST) -count=1 -v ./test/e2e/...

lint: bin/tools/golangci-lint ## gofumpt and the linters of .golangci.yml
	bin/tools/golangci-lint fmt --diff
	bin/tools/golangci-lint run ./...
	cd hack/images && ../../bin/tools/golangci-lint run ./...
	cd hack/cluster && ../../bin/tools/golangci-lint run ./...

bin/tools/golangci-lint: tools/go.mod
	@echo "building golangci-lint (minutes, once)"
	@mkdir -p bin/tools && go build -modfile=tools/go.mod -o bin/tools/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

gen: setup ## regenerate what is generated
	@mkdir -p bin/tools
	go build -modfile=tools/go.mod -o bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	protoc -I . --go_out=. --go_opt=module=podseal.io/podseal --go-grpc_out=. --go-grpc_opt=module=podseal.io/podseal api/mesh/v1/mesh.proto api/report/v1/report.proto api/peer/v1/peer.proto internal/xds/xdspb/discovery.proto internal/authpb/authorization.proto

gen-check: gen ## generated files are fresh, go.mod is tidy
	git diff --exit-code -- '*.pb.go'
	go mod tidy -diff

# Paths of other proxies (ENVOY=…) and BENCHFLAGS (see bin/bench/bench -h) are passed on.
BENCHRUN = bin/bench/bench -version $(VERSION)
ifeq ($(BENCH),quick)
bench: bench-own ## figures of this machine: the data path beside other proxies, and a cluster (root). BENCH=quick: two minutes
	$(BENCHRUN) -parts data -quick -check -peers direct,haproxy,nginx,plaingo,podseal,podseal-http $(BENCHFLAGS)
else
bench: bench-programs images bin/cluster
	$(BENCHRUN) -page docs/performance.md $(BENCHFLAGS)
endif

bench-data: bench-programs ## the data path only
	$(BENCHRUN) -parts data -page docs/performance.md $(BENCHFLAGS)

bench-profile: bench-programs ## where Podseal's CPU time goes in each scenario, into docs/performance.md
	@mkdir -p bin/profile/bench && cp bin/bench/loadgen bin/profile/bench/
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags grpcnotrace -ldflags "-X podseal.io/podseal/internal/version.Version=$(VERSION)" -o bin/profile/ ./cmd/podseal-proxy
	$(BENCHRUN) -bin bin/profile -parts data -placements pinned -peers podseal,podseal-http -profile -page docs/performance.md $(BENCHFLAGS)

bench-own: build
	@./hack/setup $(or $(BENCH),bench)
	@mkdir -p bin/bench
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/bench/ ./test/bench/loadgen ./test/bench/plaingo
	go build -o bin/bench/ ./test/bench

bench-programs: bench-own
	@[ -e bin/bench/ghostunnel ] || go build -C test/bench/ghostunnel -trimpath -ldflags "-s -w" -o $(CURDIR)/bin/bench/ghostunnel github.com/ghostunnel/ghostunnel || \
	  echo "ghostunnel is left out: it needs the module proxy and a C compiler" >&2

bench-micro: ## microbenchmarks, compared with bin/bench-micro.txt of the last time
	@mkdir -p bin/tools && GOBIN=$(CURDIR)/bin/tools go install golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
	go test -run '^$$' -bench . -benchmem -count $(or $(COUNT),6) $$(grep -l '^func Benchmark' -r internal --include='*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|') >bin/bench-micro.new
	@[ -e bin/bench-micro.txt ] && benchstat bin/bench-micro.txt bin/bench-micro.new || benchstat bin/bench-micro.new
	@mv bin/bench-micro.new bin/bench-micro.txt

fuzz: ## every fuzz target for FUZZTIME each
	./hack/fuzz $(or $(FUZZTIME),10s)

setup: ## Debian packages that the targets above need (root)
	@./hack/setup

FORCE:
