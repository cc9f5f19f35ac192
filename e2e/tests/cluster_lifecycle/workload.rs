//! What runs in the cluster while its life goes on: a pod of a busybox, with a volume, and a table.

use std::path::{Path, PathBuf};

use e2e::{
    Cluster,
    debian::{self, Package},
    image::Image,
};

const BUSYBOX: Package = Package {
    program: "/bin/busybox",
    package: "busybox-static",
};
const IMAGE: &str = "docker.io/nomnom/busybox:1";
/// `restricted`, and so as any user; it resolves names of its own cluster, and reaches the database by one.
const MANIFEST: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: life}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: life}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: docker.io/nomnom/busybox:1
    command: [/busybox, sh, -ec]
    args:
    - |
      /busybox nslookup kubernetes.default.svc.cluster.local
      /busybox nc -w 5 postgres.databases.svc 5432 </dev/null
      test -f /data/written || echo once > /data/written
      echo done
      exec /busybox sleep 100000
    readinessProbe: {exec: {command: [/busybox, test, -s, /data/written]}, periodSeconds: 1}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: data}
";

pub fn runs_a_pod() {
    let cluster = Cluster::attach().unwrap();
    let archive = busybox_image();
    assert!(cluster.load_image(&archive).unwrap());
    assert!(
        !cluster.load_image(&archive).unwrap(),
        "the same image is loaded twice"
    );
    cluster
        .kubectl_with_input(&["apply", "-f", "-"], MANIFEST)
        .unwrap();
    wait_until_ready(&cluster);
    let log = cluster.kubectl(&["logs", "--namespace=life", "worker"]).unwrap();
    assert!(log.contains("10.203.0.1") && log.contains("done"), "{log}");
    assert_eq!(written(&cluster), "once");
}

fn busybox_image() -> PathBuf {
    debian::ensure(&[BUSYBOX]).unwrap();
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox.tar");
    let image = Image {
        name: IMAGE.to_owned(),
        binary: BUSYBOX.program.into(),
        certificates: None,
    };
    image.write(&archive).unwrap();
    archive
}

fn wait_until_ready(cluster: &Cluster) {
    let arguments = [
        "wait",
        "--namespace=life",
        "--for=condition=Ready",
        "--timeout=90s",
        "pod/worker",
    ];
    if let Err(error) = cluster.kubectl(&arguments) {
        let why = cluster.kubectl(&["describe", "--namespace=life", "pod/worker"]);
        panic!("{error:#}\n{}", why.unwrap_or_default());
    }
}

fn written(cluster: &Cluster) -> String {
    let arguments = [
        "exec",
        "--namespace=life",
        "worker",
        "--",
        "/busybox",
        "cat",
        "/data/written",
    ];
    cluster.kubectl(&arguments).unwrap().trim().to_owned()
}

pub fn refuses_a_privileged_pod() {
    let cluster = Cluster::attach().unwrap();
    let pod = ["run", "--namespace=life", "--privileged", "--image", IMAGE, "bad"];
    let error = cluster.kubectl(&pod).unwrap_err().to_string();
    assert!(error.contains("violates PodSecurity"), "{error}");
}

pub fn faults_the_database() {
    let cluster = Cluster::attach().unwrap();
    let connects = |cluster: &Cluster| {
        let postgres = cluster.postgres();
        cluster
            .run(async move { Ok(postgres.connect("postgres").await.is_ok()) })
            .unwrap()
    };
    let postgres = cluster.postgres();
    assert!(connects(&cluster));
    postgres.stop().unwrap();
    assert!(!connects(&cluster));
    postgres.start().unwrap();
    assert!(connects(&cluster));
    postgres.kill().unwrap();
    assert!(!connects(&cluster));
    postgres.start().unwrap();
    postgres.pause().unwrap();
    postgres.resume().unwrap();
    cluster
        .run(async move {
            postgres.set_read_only(true).await?;
            assert!(postgres.create_database("life").await.is_err());
            postgres.set_read_only(false).await?;
            postgres.create_database("life").await
        })
        .unwrap();
}

pub fn write_a_row() {
    let cluster = Cluster::attach().unwrap();
    let postgres = cluster.postgres();
    let statements = "CREATE TABLE kept (a int); INSERT INTO kept VALUES (1)";
    cluster
        .run(async move { postgres.execute("life", statements).await })
        .unwrap();
}

pub fn assert_never_restarted() {
    let cluster = Cluster::attach().unwrap();
    let path = "jsonpath={.status.containerStatuses[0].restartCount}";
    let restarts = cluster
        .kubectl(&["get", "--namespace=life", "pod/worker", "-o", path])
        .unwrap();
    assert_eq!(
        restarts, "0",
        "the death of a program of the node is none of the pods' business"
    );
}

pub fn assert_row_and_volume_kept() {
    let cluster = Cluster::attach().unwrap();
    let postgres = cluster.postgres();
    let count = cluster.run(async move {
        let mut connection = postgres.connect("life").await?;
        Ok(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM kept")
            .fetch_one(&mut connection)
            .await?)
    });
    assert_eq!(count.unwrap(), 1);
    // The pod's status is from before; a container that answers is not.
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(2);
    let arguments = [
        "exec",
        "--namespace=life",
        "worker",
        "--",
        "/busybox",
        "cat",
        "/data/written",
    ];
    loop {
        match cluster.kubectl(&arguments) {
            Ok(text) => return assert_eq!(text.trim(), "once"),
            Err(error) if std::time::Instant::now() > deadline => panic!("{error:#}"),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(200)),
        }
    }
}
