//! The volumes of one pod: made before its first container starts, and their files made anew when what they are made
//! from has changed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use skein_control::container::{self, VolumePlan, VolumeSource};
use skein_control::pod::StartError;
use skein_control::view::{Key, View};
use tokio::sync::{RwLock, RwLockReadGuard};
use tracing::debug;

use super::container::{prepare_host_path, volume};
use super::pod::Scene;
use crate::report::Chain;

/// See the module.
#[derive(Default)]
pub(super) struct Volumes {
    /// What they were last made from; `None` before they were made at all.
    basis: Mutex<Option<Basis>>,
    /// Read by whoever starts a container, which uses files as they lie there; written by whoever replaces them.
    use_of_files: RwLock<()>,
}

/// What the files of a pod are made from.
#[derive(Clone, Default, PartialEq)]
struct Basis {
    /// The revision of each object, if it is there.
    objects: BTreeMap<Key, Option<u64>>,
    /// Labels and annotations, which some pods find in files.
    words: Option<[Option<BTreeMap<String, String>>; 2]>,
}

impl Basis {
    fn of(view: &View, pod: &Pod) -> Basis {
        let revision = |key: Key| {
            let stored = view.stored(&key).map(|stored| stored.revision);
            (key, stored)
        };
        let shows_itself = container::shows_own_metadata(pod);
        let words = shows_itself.then(|| [pod.metadata.labels.clone(), pod.metadata.annotations.clone()]);
        Basis { objects: container::sources(pod).into_iter().map(revision).collect(), words }
    }
}

impl Volumes {
    /// Of a pod whose containers were found: they were made once, nobody knows from what.
    pub(super) fn adopted() -> Volumes {
        Volumes { basis: Mutex::new(Some(Basis::default())), ..Volumes::default() }
    }

    /// Whether they were made, and what they were made from has changed since.
    pub(super) fn are_outdated(&self, view: &View, pod: &Pod) -> bool {
        let basis = self.basis.lock().unwrap_or_else(PoisonError::into_inner);
        basis.as_ref().is_some_and(|basis| *basis != Basis::of(view, pod))
    }

    fn are_made_from(&self, now: &Basis) -> bool {
        self.basis.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(now)
    }

    fn set_basis(&self, basis: Option<Basis>) {
        *self.basis.lock().unwrap_or_else(PoisonError::into_inner) = basis;
    }
}

/// Makes all volumes of the pod by `view`, unless that has been done. They stay as they are until what is returned is
/// dropped.
pub(super) async fn make<'s>(scene: &'s Scene, view: &View) -> Result<RwLockReadGuard<'s, ()>, StartError> {
    let volumes = &*scene.volumes;
    let now = Basis::of(view, &scene.pod);
    loop {
        let used = volumes.use_of_files.read().await;
        if volumes.are_made_from(&now) {
            return Ok(used);
        }
        drop(used);
        let _alone = volumes.use_of_files.write().await;
        if volumes.are_made_from(&now) {
            continue;
        }
        volumes.set_basis(None);
        let plans = container::volumes(view, &scene.pod, &scene.facts());
        for plan in plans.map_err(container::Error::into_volume_error)? {
            put(scene, plan)
                .await
                .map_err(|message| StartError { reason: "ContainerCreating".to_owned(), message })?;
        }
        volumes.set_basis(Some(now.clone()));
    }
}

/// Makes the files anew of a pod that runs, if they are outdated. What cannot be made now stays as it was, and is told:
/// the next change is another chance.
pub(super) async fn update(scene: &Scene) {
    let volumes = &scene.volumes;
    let _alone = volumes.use_of_files.write().await;
    let seen = scene.tools.picture.view();
    if !volumes.are_outdated(&seen, &scene.pod) {
        return;
    }
    volumes.set_basis(Some(Basis::of(&seen, &scene.pod)));
    let failed = |message: &str| scene.tell(None, true, "FailedMount", message);
    let view = match scene.view().await {
        Ok(view) => view,
        Err(error) => return failed(&error),
    };
    let plans = match container::volumes(&view, &scene.pod, &scene.facts()) {
        Ok(plans) => plans,
        Err(error) => return failed(&error.into_volume_error().message),
    };
    for plan in plans.into_iter().filter(|plan| matches!(plan.source, VolumeSource::Files { .. })) {
        let name = plan.name.clone();
        match put(scene, plan).await {
            Ok(()) => debug!(volume = name, "looked after the files of a volume"),
            Err(error) => failed(&format!("MountVolume.SetUp failed for volume {name:?}: {error}")),
        }
    }
}

async fn put(scene: &Scene, plan: VolumePlan) -> Result<(), String> {
    let name = plan.name.clone();
    match volume(plan) {
        Ok(volume) => {
            let put = scene.tools.engine.put_volume(&scene.uid, &name, volume).await;
            put.map(drop).map_err(|error| Chain(&error).to_string())
        }
        Err((path, kind)) => {
            prepare_host_path(&path, kind)?;
            scene.host_paths.lock().unwrap_or_else(PoisonError::into_inner).insert(name, path);
            Ok(())
        }
    }
}
