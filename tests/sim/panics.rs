//! Panics of simulated tasks: the runtime turns them into errors that nobody has to read.

use std::cell::RefCell;
use std::panic::{set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on panics of this program are noted as well as shown.
pub(crate) fn note() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let show = take_hook();
        set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            show(panic);
        }));
    });
    PANICS.take();
}

/// Whether there was one on this thread.
pub(crate) fn any() -> bool {
    PANICS.with_borrow(|panics| !panics.is_empty())
}

/// Those of this thread.
pub(crate) fn take() -> Vec<String> {
    PANICS.take()
}
