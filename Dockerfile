# The images of both programs: `docker build --target operator .` and `docker build --target ingest-runtime .`.
# `cluster image` packs the same layout without a container engine.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
# With a target named, the flags are for the programs alone: macros are libraries and cannot be static.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    set -eu; \
    target=$(rustc -vV | sed -n 's/^host: //p'); \
    RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_LTO=thin \
      cargo build --release --locked --target "$target" -p operator -p ingest-runtime; \
    install -D -t /programs "target/$target/release/operator" "target/$target/release/ingest-runtime"; \
    install -d -m 1777 /root-directory/tmp; \
    install -D -m 644 -t /root-directory/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt; \
    echo 'nonroot:x:65532:65532::/:/' > /root-directory/etc/passwd

FROM scratch AS base
COPY --from=build /root-directory/ /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532

FROM base AS operator
COPY --from=build /programs/operator /operator
ENTRYPOINT ["/operator"]

FROM base AS ingest-runtime
COPY --from=build /programs/ingest-runtime /ingest-runtime
ENTRYPOINT ["/ingest-runtime"]
