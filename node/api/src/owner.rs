//! Who owns an object: owner references.

use k8s_openapi::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// A reference from what a controller makes to the object it makes it for. Deletion of the owner in the
/// foreground waits for it.
pub fn controller_reference<T: Resource>(owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: T::API_VERSION.into(),
        kind: T::KIND.into(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The one owner that controls the object.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object of this uid controls this one.
pub fn is_controlled_by(metadata: &ObjectMeta, uid: &str) -> bool {
    controller_of(metadata).is_some_and(|owner| owner.uid == uid)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;

    use super::*;

    #[test]
    fn an_object_knows_its_controller_among_its_owners() {
        let owner =
            ObjectMeta { name: Some("web-1".into()), uid: Some("u-1".into()), ..ObjectMeta::default() };
        let controller = controller_reference::<ReplicaSet>(&owner);
        assert_eq!((controller.api_version.as_str(), controller.kind.as_str()), ("apps/v1", "ReplicaSet"));
        let other = OwnerReference { uid: "u-2".into(), ..OwnerReference::default() };
        let owned = ObjectMeta { owner_references: Some(vec![other, controller]), ..ObjectMeta::default() };
        assert!(is_controlled_by(&owned, "u-1"));
        assert!(!is_controlled_by(&owned, "u-2"));
        assert!(!is_controlled_by(&ObjectMeta::default(), "u-1"));
    }
}
