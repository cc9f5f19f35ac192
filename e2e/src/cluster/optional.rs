//! Programs that a cluster has only where somebody asked for them, by `cluster up --with`.
//!
//! Each is remembered by a file in the cluster's directory: so a later `up` heals it too, and `down` forgets it.

use std::fs;

use anyhow::{Context, Result};

use super::{
    component::Component,
    components::{COMPONENTS, NATS},
    layout::Layout,
};

/// What can be asked for.
const OPTIONAL: [&Component; 1] = [&NATS];

/// The names of what can be asked for.
pub fn names() -> impl Iterator<Item = &'static str> {
    OPTIONAL.iter().map(|component| component.name)
}

/// The programs of the cluster in `layout`, in the order in which `status` shows them.
#[must_use]
pub fn components_of(layout: &Layout) -> Vec<&'static Component> {
    let asked_for = OPTIONAL
        .iter()
        .filter(|component| is_asked_for(layout, component));
    COMPONENTS.iter().chain(asked_for).copied().collect()
}

/// Whether the cluster in `layout` was asked to have the component.
#[must_use]
pub fn is_asked_for(layout: &Layout, component: &Component) -> bool {
    layout.path("with").join(component.name).exists()
}

/// The components called `names`, and those that the cluster was asked for before: what has to be built.
pub fn wanted(layout: &Layout, names: &[String]) -> Result<Vec<&'static Component>> {
    let mut wanted = names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
    for component in OPTIONAL {
        let is_listed = wanted.iter().any(|other| other.name == component.name);
        if !is_listed && is_asked_for(layout, component) {
            wanted.push(component);
        }
    }
    Ok(wanted)
}

/// Makes the components called `names` part of the cluster, and returns those that were not.
pub fn remember(layout: &Layout, names: &[String]) -> Result<Vec<&'static str>> {
    let mut added = Vec::new();
    for name in names {
        let component = find(name)?;
        if is_asked_for(layout, component) {
            continue;
        }
        // First: whoever is killed in between has its objects applied once more, and not forgotten.
        layout.mark_incomplete()?;
        fs::create_dir_all(layout.path("with"))?;
        fs::write(layout.path("with").join(component.name), "")
            .with_context(|| format!("failed to remember {}", component.name))?;
        added.push(component.name);
    }
    Ok(added)
}

fn find(name: &str) -> Result<&'static Component> {
    let known = || names().collect::<Vec<_>>().join(" ");
    OPTIONAL
        .into_iter()
        .find(|component| component.name == name)
        .with_context(|| format!("there is no {name} to bring up; there is: {}", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_what_it_was_asked_for_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            directory: directory.path().to_owned(),
        };
        let has_nats = || {
            components_of(&layout)
                .iter()
                .any(|component| component.name == "nats")
        };
        fs::write(layout.path("complete"), "").unwrap();
        assert!(wanted(&layout, &[]).unwrap().is_empty());
        assert!(remember(&layout, &[]).unwrap().is_empty());
        assert!(!has_nats());
        assert!(layout.is_complete());

        let twice = ["nats".to_owned(), "nats".to_owned()];
        assert!(wanted(&layout, &twice).is_ok());
        assert_eq!(remember(&layout, &twice).unwrap(), ["nats"]);
        assert!(has_nats());
        assert!(!layout.is_complete(), "its Service is still to be made");

        layout.mark_complete().unwrap();
        assert_eq!(wanted(&layout, &[]).unwrap().len(), 1, "a later `up` heals it");
        assert!(remember(&layout, &twice).unwrap().is_empty());
        assert!(layout.is_complete());
    }

    #[test]
    fn says_what_there_is_to_ask_for() {
        let layout = Layout {
            directory: "/nowhere".into(),
        };
        let error = wanted(&layout, &["mysql".to_owned()]).err().unwrap().to_string();
        assert_eq!(error, "there is no mysql to bring up; there is: nats");
    }

    #[test]
    fn needs_nothing_that_may_be_missing() {
        for component in OPTIONAL {
            assert!(!names().any(|name| component.after.contains(&name)));
            assert!(COMPONENTS.iter().all(|other| other.name != component.name));
        }
    }
}
