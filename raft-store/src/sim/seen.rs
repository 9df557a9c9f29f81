//! Rare branches that were taken: what never happened was not tested.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static SEEN: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

pub(crate) fn see(what: &'static str) {
    SEEN.with_borrow_mut(|seen| *seen.entry(what).or_default() += 1);
}

/// How often each rare branch of the stores on this thread was taken since this was last called.
pub fn take_seen() -> BTreeMap<&'static str, u64> {
    SEEN.take()
}
