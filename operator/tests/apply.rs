//! Two controllers that want one name at one moment: one has it, and nothing of the other is left in it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use e2e::ControlPlane;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, ResourceExt};
use operator::kube_api::{
    apply::{Applied, Applier},
    ownership::Owner,
};

struct Rival {
    applier: Applier,
    owner: Owner,
}

impl Rival {
    fn new(plane: &ControlPlane, name: &'static str) -> Self {
        let reference = OwnerReference {
            api_version: "nomnom.dev/v1alpha1".into(),
            kind: "IngestionPipeline".into(),
            name: name.into(),
            uid: name.into(),
            controller: None,
            block_owner_deletion: None,
        };
        Self {
            applier: Applier::new(plane.client(), name),
            owner: Owner {
                namespace: "default".into(),
                labels: BTreeMap::from([("rival".into(), name.into())]),
                reference,
            },
        }
    }

    /// A ConfigMap with fields that only this rival has, so that applying both is no conflict.
    fn wanted(&self, name: &str) -> ConfigMap {
        let mine = &self.owner.reference.name;
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                annotations: Some(BTreeMap::from([(format!("rival/{mine}"), String::new())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(mine.clone(), String::new())])),
            ..ConfigMap::default()
        }
    }

    async fn apply(&self, name: &str) -> Applied<ConfigMap> {
        self.applier
            .apply(&self.owner, None, &self.wanted(name))
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn nobody_takes_what_another_one_made_meanwhile() {
    let plane = ControlPlane::start().await.unwrap();
    let (one, two) = (Rival::new(&plane, "one"), Rival::new(&plane, "two"));
    let config_maps: Api<ConfigMap> = Api::namespaced(plane.client(), "default");
    for round in 0..40 {
        let name = format!("wanted-{round}");
        let (of_one, of_two) = tokio::join!(one.apply(&name), two.apply(&name));
        let object = config_maps.get(&name).await.unwrap();
        let winner = match (&of_one, &of_two) {
            (Applied::Sent(_), Applied::Foreign(_) | Applied::Moved) => "one",
            (Applied::Foreign(_) | Applied::Moved, Applied::Sent(_)) => "two",
            other => panic!("{other:?}"),
        };
        let keys: Vec<_> = object.data.as_ref().unwrap().keys().collect();
        assert_eq!(keys, [winner], "{object:#?}");
        assert!(object.annotations().contains_key(&format!("rival/{winner}")));
        assert_eq!(object.annotations().len(), 1);
    }
}

/// The watch is behind: it still tells of an object in whose place another one is.
#[tokio::test]
async fn what_took_the_place_of_the_observed_object_is_not_touched() {
    let plane = ControlPlane::start().await.unwrap();
    let mut rival = Rival::new(&plane, "one");
    rival.owner.reference.controller = Some(true);
    let config_maps: Api<ConfigMap> = Api::namespaced(plane.client(), "default");
    let mut wanted = rival.wanted("replaced");
    wanted.metadata.owner_references = Some(vec![rival.owner.reference.clone()]);
    let Applied::Sent(observed) = rival.applier.apply(&rival.owner, None, &wanted).await.unwrap() else {
        panic!("not created");
    };
    let delete = kube::api::DeleteParams::default();
    config_maps.delete("replaced", &delete).await.unwrap();
    let anew = config_maps
        .create(&kube::api::PostParams::default(), &wanted)
        .await
        .unwrap();
    wanted.data = None;
    let seen = Some(&observed.metadata);
    let applied = rival.applier.apply(&rival.owner, seen, &wanted).await.unwrap();
    assert!(matches!(applied, Applied::Moved), "{applied:?}");
    rival.applier.check(&rival.owner, seen, &wanted).await.unwrap();
    let mut stale = observed.metadata.clone();
    stale.resource_version = None;
    let (client, labels) = (plane.client(), BTreeMap::default());
    operator::kube_api::adopt::adopt::<ConfigMap>(client, &rival.owner, &stale, &labels)
        .await
        .unwrap();
    let now = config_maps.get("replaced").await.unwrap();
    assert_eq!(now.resource_version(), anew.resource_version());
}
