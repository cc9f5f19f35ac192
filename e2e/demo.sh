#!/usr/bin/env bash
# The demo: a cluster, the operator, the example pipeline; a record in, a row out: what `make demo` does. With KUBECONFIG set it uses that cluster, and needs DATABASE_URL: a PostgreSQL
# URL that the cluster's pods can reach, of a database that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
operator_image=${OPERATOR_IMAGE:-docker.io/nomnom/operator:$version}
runtime_image=${RUNTIME_IMAGE:-docker.io/nomnom/ingest-runtime:$version}
started=$SECONDS

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
# Shows a command and runs it.
run() { printf '$ %s\n' "$*" && "$@"; }
fail() { printf 'error: %s\n' "$*" >&2 && exit 1; }
# The programs of the images are built beside everything else: neither build keeps all processors busy alone.
build_images() {
  mkdir -p target
  make --no-print-directory images >target/images.log 2>&1 &
  building=$!
  trap 'kill $building 2>/dev/null || true' EXIT
}
wait_for_images() {
  kill -0 $building 2>/dev/null && say "Building the programs of the images (see target/images.log)"
  wait $building || fail "the programs of the images cannot be built; the end of target/images.log:"$'\n'"$(tail -n 15 target/images.log)"
  trap - EXIT
}

if ! command -v curl >/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "curl is missing: install it"
  say "Installing curl" && apt-get update -qq && apt-get install -y -qq --no-install-recommends curl >/dev/null
fi
if [ -n "${KUBECONFIG:-}" ]; then
  own_cluster=yes
  command -v kubectl >/dev/null || fail "kubectl is missing: install it, or unset KUBECONFIG to use the cluster of this repository"
  [ -n "${DATABASE_URL:-}" ] || fail "set DATABASE_URL to a PostgreSQL URL that pods of your cluster can reach"
  inside() { "$@"; }
else
  own_cluster=
  build_images
  say "Building the cluster's program, and beside it those of the images (progress: target/images.log)"
  cargo build -q --workspace --bin cluster --locked
  cluster=$PWD/target/debug/cluster
  kubectl() { "$cluster" kubectl -- "$@"; }
  inside() { "$cluster" exec -- "$@"; }
fi

if [ -z "$own_cluster" ]; then
  say "A Kubernetes cluster on this machine"
  "$cluster" up
  wait_for_images
  up=$SECONDS
  mkdir -p target/images
  load_image() { # PROGRAM IMAGE
    "$cluster" image --binary "target/$host/release/$1" --name "$2" --output "target/images/$1.tar"
    "$cluster" load-image "target/images/$1.tar"
  }
  loaded=$(load_image operator "$operator_image" && load_image ingest-runtime "$runtime_image")
  printf '%s\n' "$loaded"
  server=postgres://postgres:secret@postgres.databases.svc:5432
  database_url=$server/shop
  # The cluster's DNS learns of a new Service within seconds.
  for _ in $(seq 60); do inside psql -q "$server/postgres" -c 'SELECT 1' >/dev/null 2>&1 && break || sleep 0.5; done
  inside psql -q "$server/postgres" -tAc "SELECT 1 FROM pg_database WHERE datname = 'shop'" | grep -q 1 ||
    inside psql -q "$server/postgres" -c 'CREATE DATABASE shop'
else
  up=$SECONDS database_url=$DATABASE_URL
fi

say "The operator"
run kubectl apply --server-side -k config/crd
run kubectl apply --server-side -k config/default
kubectl -n nomnom-system set image deployment/nomnom-operator "operator=$operator_image" >/dev/null
kubectl -n nomnom-system set env deployment/nomnom-operator "RUNTIME_IMAGE=$runtime_image" >/dev/null
# What runs from an earlier build under the same name starts anew.
if grep -q '^loaded' <<<"${loaded:-}"; then
  kubectl -n nomnom-system rollout restart deployment/nomnom-operator >/dev/null
  kubectl -n shop delete pods -l nomnom.dev/pipeline=orders --ignore-not-found >/dev/null
fi
run kubectl -n nomnom-system rollout status deployment/nomnom-operator --timeout=180s

say "The example pipeline, and the Secret with its database's URL"
kubectl get namespace shop >/dev/null 2>&1 || kubectl create namespace shop
kubectl -n shop create secret generic orders-db --from-literal=url="$database_url" --dry-run=client -o yaml | kubectl apply -f -
run kubectl apply -f examples/orders.yaml
run kubectl wait --for=condition=Ready -n shop ipl/orders --timeout=180s

# Where this script reaches the endpoint: the Service itself, or a forwarded port of a cluster elsewhere.
if [ -z "$own_cluster" ]; then
  endpoint=http://orders.shop.svc:8080
else
  command kubectl -n shop port-forward service/orders 18080:8080 >/dev/null &
  forward=$!
  trap 'kill $forward' EXIT
  endpoint=http://127.0.0.1:18080
fi
# A node's proxy learns of a pod a moment after it is ready.
for _ in $(seq 50); do inside curl -s -o /dev/null "$endpoint" && break || sleep 0.2; done
post() {
  printf "$ curl -H 'content-type: text/plain' --data '%s' %s\n" "$1" http://orders.shop.svc:8080/api/ingest/message
  answer=$(inside curl -sS -w '\n%{http_code}' -H 'content-type: text/plain' --data-raw "$1" "$endpoint/api/ingest/message")
  printf '%s\n' "$answer"
}

say "A record goes in"
post 'O|123|456|F|123.45|2024-01-01|urgent|clerk1|1|comment'
[ "${answer##*$'\n'}" = 200 ] || fail "the record was not stored: see 'kubectl -n shop describe ipl orders'"
message_id=$(sed -n 's/.*"message_id":"\([^"]*\)".*/\1/p' <<<"$answer")

say "A bad record is refused, with the reason"
post 'O|123|456|F|123.45|2024-02-30|urgent|clerk1|1|comment'

say "The status of the first"
inside curl -sS "$endpoint/api/ingest/status/$message_id" && echo

say "A row comes out"
if [ -z "$own_cluster" ] || command -v psql >/dev/null; then
  inside psql "$database_url" -x -c "SELECT * FROM orders WHERE message_id = '$message_id'"
else
  echo "psql is not installed here: SELECT * FROM orders WHERE message_id = '$message_id'"
fi
printf 'from the cluster being up to the row: %d s; in all: %d s\n' $((SECONDS - up)) $((SECONDS - started))

say "What the cluster says"
run kubectl get ipl -n shop
kubectl get ipl -n shop orders -o 'jsonpath={range .status.conditions[*]}{.type}={.status} ({.reason}): {.message}{"\n"}{end}'

say "What to try next"
if [ -z "$own_cluster" ]; then
  cat <<TEXT
  alias k='$cluster kubectl --'
  k explain ipl.spec                                          every field, with its default
  k -n shop edit ipl orders                                   a bad edit keeps the last good spec serving
  k -n shop get events
  $cluster exec -- curl -s $endpoint/api/ingest/status/$message_id
  $cluster exec -- psql $database_url -c 'SELECT count(*) FROM orders'
  make cluster-down                                           takes everything away
TEXT
else
  cat <<TEXT
  kubectl explain ipl.spec                                    every field, with its default
  kubectl -n shop edit ipl orders                             a bad edit keeps the last good spec serving
  kubectl -n shop delete ipl orders && kubectl delete namespace shop
  kubectl delete -k config/default && kubectl delete -k config/crd
TEXT
fi
