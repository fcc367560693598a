.DEFAULT_GOAL := help
SHELL := /bin/bash
TAGS  := grpcnotrace
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -buildid= -X podseal.io/podseal/internal/version.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags $(TAGS) -ldflags "$(LDFLAGS)"
TOOL  := go tool -modfile=tools/go.mod

.PHONY: help build gen lint
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

build: ## bin/podseal and bin/podseal-proxy
	$(GOBUILD) -o bin/ ./cmd/podseal ./cmd/podseal-proxy

gen: ## regenerate what is generated (needs protoc)
	@mkdir -p bin/tools
	$(TOOL) -n protoc-gen-go >/dev/null
	go build -modfile=tools/go.mod -o bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH=$$PWD/bin/tools:$$PATH protoc -I . --go_out=. --go_opt=module=podseal.io/podseal --go-grpc_out=. --go-grpc_opt=module=podseal.io/podseal api/mesh/v1/mesh.proto internal/xds/xdspb/discovery.proto

lint: ## the linters of .golangci.yml
	$(TOOL) golangci-lint run ./...
