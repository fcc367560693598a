.DEFAULT_GOAL := help
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(CURDIR)/bin/tools:$(PATH)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
CLUSTER ?= podseal
NODES   ?= 2
GOBUILD  = CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags grpcnotrace -ldflags "-s -w -buildid= -X podseal.io/podseal/internal/version.Version=$(VERSION)"
GOTEST   = go test -timeout 15m
IMAGES   = bin/images

.PHONY: help build images demo demo-down test test-unit test-netns test-hack test-e2e lint gen gen-check bench fuzz setup FORCE

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

build: ## bin/podseal and bin/podseal-proxy
	$(GOBUILD) -o bin/ ./cmd/podseal ./cmd/podseal-proxy

images: build bin/images ## bin/*.tar: the two images and the demo's all-in-one image
	bin/images podseal --binary bin/podseal --tag podseal.io/podseal:$(VERSION) --out bin/podseal.tar
	bin/images proxy --binary bin/podseal-proxy --tag podseal.io/podseal-proxy:$(VERSION) --out bin/podseal-proxy.tar
	bin/images all-in-one --tag registry.company.network/localrepo/all-in-one-image:0.1 --out bin/all-in-one.tar

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

test: setup gen-check lint test-unit test-netns test-hack test-e2e ## everything; what .ci/run runs

test-unit: ## packages, with the race detector
	$(GOTEST) -race $$(go list ./... | grep -v /test/)

test-netns: setup ## the data plane between network namespaces (root)
	$(GOTEST) -count=1 ./test/netns/...

test-hack: setup ## the local cluster and the image builder (root)
	cd hack/images && $(GOTEST) -count=1 ./...
	cd hack/cluster && $(GOTEST) -count=1 ./...

test-e2e: setup images bin/cluster ## the walkthrough on a two-node cluster of its own (root)
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
	protoc -I . --go_out=. --go_opt=module=podseal.io/podseal --go-grpc_out=. --go-grpc_opt=module=podseal.io/podseal api/mesh/v1/mesh.proto api/report/v1/report.proto internal/xds/xdspb/discovery.proto

gen-check: gen ## generated files are fresh, go.mod is tidy
	git diff --exit-code -- '*.pb.go'
	go mod tidy -diff

bench: setup images bin/cluster ## figures of this machine, on a cluster of their own (root)
	go run ./test/bench -version $(VERSION) -page docs/performance.md

fuzz: ## every fuzz target for FUZZTIME each
	./hack/fuzz $(or $(FUZZTIME),10s)

setup: ## Debian packages that the targets above need (root)
	@./hack/setup

FORCE:
