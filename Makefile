.DEFAULT_GOAL := help
.PHONY: help check generate test

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

check: ## Format, clippy, unit tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked

generate: ## Write the generated files anew (config/crd)
	NOMNOM_GENERATE=1 cargo test -p nomnom-crds --test generated --locked

test: check ## Everything
