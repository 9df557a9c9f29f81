//! How much one command holds, and how much of it is taken.

use skein_api::write::{Change, Write};

/// Bytes of one command at most, as the store takes it.
pub const COMMAND_BYTES_MAX: usize = 3 << 20;
/// Operations of one command at most, as the store takes it.
pub const COMMAND_OPS_MAX: usize = 10_000;
/// Bytes of one object at most, as the store keeps it.
pub const OBJECT_BYTES_MAX: usize = 3 << 19;

/// Bytes of an operation beside its key and value, as the store counts them.
const OP_BYTES: usize = 24;

/// An amount of operations and of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Keys and values together, and a little for each operation.
    pub bytes: usize,
    /// Operations.
    pub ops: usize,
}

impl Size {
    /// The largest command that the store takes.
    pub const COMMAND_MAX: Size = Size { bytes: COMMAND_BYTES_MAX, ops: COMMAND_OPS_MAX };

    /// What one operation takes.
    pub fn of(write: &Write) -> Size {
        match &write.change {
            Change::Put(bytes) => Size::of_op(&write.key, bytes.len()),
            Change::Delete | Change::Check => Size::of_op(&write.key, 0),
        }
    }

    pub(crate) fn of_op(key: &str, value_bytes: usize) -> Size {
        Size { bytes: OP_BYTES + key.len() + value_bytes, ops: 1 }
    }

    /// Both together.
    pub fn plus(self, other: Size) -> Size {
        Size { bytes: self.bytes.saturating_add(other.bytes), ops: self.ops.saturating_add(other.ops) }
    }

    /// What is left without `other`.
    pub fn minus(self, other: Size) -> Size {
        Size { bytes: self.bytes.saturating_sub(other.bytes), ops: self.ops.saturating_sub(other.ops) }
    }

    /// Of each the smaller one.
    pub fn least(self, other: Size) -> Size {
        Size { bytes: self.bytes.min(other.bytes), ops: self.ops.min(other.ops) }
    }

    /// Half of it, and never nothing.
    pub fn halved(self) -> Size {
        Size { bytes: (self.bytes / 2).max(1), ops: (self.ops / 2).max(1) }
    }

    /// Twice as much, and no more than `most`.
    pub fn doubled(self, most: Size) -> Size {
        Size {
            bytes: self.bytes.saturating_mul(2).min(most.bytes),
            ops: self.ops.saturating_mul(2).min(most.ops),
        }
    }

    /// Whether it is nothing at all.
    pub fn is_nothing(self) -> bool {
        self == Size::default()
    }

    /// Whether neither operations nor bytes are more than those of `limit`.
    pub fn fits(self, limit: Size) -> bool {
        self.bytes <= limit.bytes && self.ops <= limit.ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operation_takes_counts_its_key_and_its_value() {
        assert_eq!(Size::of(&Write::create("abc", vec![0; 10])), Size { bytes: 37, ops: 1 });
        assert_eq!(Size::of(&Write::delete("abc", 7)), Size { bytes: 27, ops: 1 });
    }

    #[test]
    fn a_limit_is_never_halved_to_nothing_nor_doubled_beyond_its_most() {
        let most = Size { bytes: 100, ops: 3 };
        let halved = (0..10).fold(most, |size, _| size.halved());
        assert_eq!(halved, Size { bytes: 1, ops: 1 });
        assert_eq!((0..10).fold(halved, |size, _| size.doubled(most)), most);
    }
}
