//! Every bound on what a user may send, in one place.

/// The stored bytes of one object. etcd's bound, which clients know.
pub const OBJECT_BYTES_MAX: usize = 1_536 * 1024;

/// A request's body. An update carries an object, a strategic patch may carry it nearly twice.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Keys and elements of one decoded body: a YAML alias can make few bytes into many.
pub const BODY_NODES_MAX: usize = 500_000;

/// Operations of one JSON patch: upstream's bound.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Values copied or visited while one patch is computed: `copy` can double an object with each step.
pub const PATCH_NODES_MAX: usize = 1_000_000;

/// All annotations of one object together, keys and values.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// The data of one config map or secret.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

/// A label selector's or field selector's text.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// Errors reported for one object. The rest would say little and cost much.
pub const FIELD_ERRORS_MAX: usize = 100;
