//! What a daemon that starts does about the pods that it finds on its machine, before anything else.
//!
//! While it was away the cluster may have replaced them. So before it starts anything, and before it calls its node
//! Ready, it ends what runs here and is not bound here by the newest state that it can reach: one that shows all that
//! was committed before this start. Without a quorum nobody knows that state: then what runs goes on, and nothing is
//! ended before there is one.
//!
//! [`Homecoming::handle`] takes one input at a time; [`Homecoming::may_begin`] says of each pod that is bound here
//! and has no life yet whether it may have one now.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::time::Instant;

/// How long the node waits for the end of what it ends: a kill is a matter of milliseconds, and a disk that hangs
/// must not keep a node away for good.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Clone)]
pub struct Homecoming<Uid> {
    /// What ran here before this start.
    found: BTreeSet<Uid>,
    stage: Stage<Uid>,
}

#[derive(Debug, Clone)]
enum Stage<Uid> {
    /// What is bound here is not known for certain.
    Unsettled,
    /// These are being ended.
    Ending {
        strays: BTreeSet<Uid>,
        until: Instant,
    },
    Home,
}

/// What the shell tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<Uid> {
    /// The picture shows what was committed before this start; these pods are bound here.
    Settled(BTreeSet<Uid>),
    /// Nothing is left of a pod.
    Ended(Uid),
    /// The moment asked for by [`Effect::WakeAt`] came.
    Woken,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<Uid> {
    /// End a pod that runs here and is not bound here any more, and try until it is done.
    End(Uid),
    /// Hand in [`Input::Woken`] then.
    WakeAt(Instant),
    /// Start what is bound here, and call the node Ready.
    Home {
        /// What could not be ended in time and is still tried.
        left: BTreeSet<Uid>,
    },
}

impl<Uid: Clone + Ord> Homecoming<Uid> {
    /// The homecoming of a daemon that found these pods.
    pub fn new(found: impl IntoIterator<Item = Uid>) -> Homecoming<Uid> {
        Homecoming { found: found.into_iter().collect(), stage: Stage::Unsettled }
    }

    /// Takes one input at `now` and adds what the shell must do.
    pub fn handle(&mut self, now: Instant, input: Input<Uid>, effects: &mut Vec<Effect<Uid>>) {
        match input {
            Input::Settled(bound) => {
                if let Stage::Unsettled = self.stage {
                    let strays: BTreeSet<Uid> = self.found.difference(&bound).cloned().collect();
                    let until = now.after(ENDS_WITHIN);
                    effects.extend(strays.iter().cloned().map(Effect::End));
                    if !strays.is_empty() {
                        effects.push(Effect::WakeAt(until));
                    }
                    self.stage = Stage::Ending { strays, until };
                }
            }
            Input::Ended(uid) => {
                self.found.remove(&uid);
                if let Stage::Ending { strays, .. } = &mut self.stage {
                    strays.remove(&uid);
                }
            }
            Input::Woken => {}
        }
        if let Stage::Ending { strays, until } = &mut self.stage
            && (strays.is_empty() || now >= *until)
        {
            effects.push(Effect::Home { left: std::mem::take(strays) });
            self.stage = Stage::Home;
        }
    }

    /// Whether a pod that is bound here by the present picture, and has no life yet, may have one.
    ///
    /// * `has_log`: whether this node's own log holds everything that its pods were started by. Where it does not,
    ///   an old picture starts nothing.
    pub fn may_begin(&self, uid: &Uid, has_log: bool) -> bool {
        match &self.stage {
            Stage::Unsettled => has_log || self.found.contains(uid),
            Stage::Ending { .. } => false,
            Stage::Home => true,
        }
    }

    /// Whether this is over.
    pub fn is_home(&self) -> bool {
        matches!(self.stage, Stage::Home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTIL: Instant = Instant(15_000);

    fn all<const N: usize>(uids: [&'static str; N]) -> BTreeSet<&'static str> {
        uids.into()
    }

    fn home<const N: usize>(left: [&'static str; N]) -> Effect<&'static str> {
        Effect::Home { left: left.into() }
    }

    fn give(
        homecoming: &mut Homecoming<&'static str>,
        at: u64,
        input: Input<&'static str>,
    ) -> Vec<Effect<&'static str>> {
        let mut effects = Vec::new();
        homecoming.handle(Instant(at), input, &mut effects);
        effects
    }

    #[test]
    fn a_node_on_which_nothing_ran_or_only_what_is_bound_to_it_is_home_at_once() {
        for found in [all([]), all(["a"]), all(["a", "b"])] {
            let mut homecoming = Homecoming::new(found);
            let effects = give(&mut homecoming, 5000, Input::Settled(all(["a", "b"])));
            assert_eq!(effects, [home([])]);
            assert!(homecoming.is_home() && homecoming.may_begin(&"c", false));
        }
    }

    #[test]
    fn what_is_bound_elsewhere_is_ended_before_anything_begins() {
        let mut homecoming = Homecoming::new(["a", "b", "c"]);
        let effects = give(&mut homecoming, 5000, Input::Settled(all(["b", "new"])));
        assert_eq!(effects, [Effect::End("a"), Effect::End("c"), Effect::WakeAt(UNTIL)]);
        for uid in ["b", "new"] {
            assert!(!homecoming.may_begin(&uid, true), "{uid}");
        }
        assert_eq!(give(&mut homecoming, 5100, Input::Ended("a")), []);
        assert!(!homecoming.is_home());
        assert_eq!(give(&mut homecoming, 5200, Input::Ended("c")), [home([])]);
        assert!(homecoming.may_begin(&"b", false) && homecoming.may_begin(&"new", false));
    }

    #[test]
    fn what_does_not_end_is_not_waited_for_for_ever() {
        let mut homecoming = Homecoming::new(["a", "b"]);
        give(&mut homecoming, 5000, Input::Settled(all([])));
        give(&mut homecoming, 5100, Input::Ended("a"));
        assert_eq!(give(&mut homecoming, 14_999, Input::Woken), []);
        assert_eq!(give(&mut homecoming, 15_000, Input::Woken), [home(["b"])]);
        assert_eq!(give(&mut homecoming, 16_000, Input::Ended("b")), []);
    }

    #[test]
    fn without_a_quorum_what_runs_goes_on_and_nothing_is_ended() {
        let mut homecoming = Homecoming::new(["a"]);
        assert_eq!(give(&mut homecoming, 60_000, Input::Woken), []);
        assert!(homecoming.may_begin(&"a", false));
        assert!(!homecoming.may_begin(&"bound", false), "by what may be an old picture");
        assert!(homecoming.may_begin(&"bound", true), "by its own log");
        assert!(!homecoming.is_home());
    }

    #[test]
    fn what_went_on_without_a_quorum_and_turns_out_to_be_bound_elsewhere_is_ended_first() {
        let mut homecoming = Homecoming::new(["a", "b"]);
        assert!(homecoming.may_begin(&"a", false));
        let effects = give(&mut homecoming, 5000, Input::Settled(all(["b"])));
        assert_eq!(effects, [Effect::End("a"), Effect::WakeAt(UNTIL)]);
        assert!(!homecoming.may_begin(&"b", true));
    }

    #[test]
    fn what_ended_before_the_picture_was_complete_is_not_waited_for() {
        let mut homecoming = Homecoming::new(["a"]);
        give(&mut homecoming, 1000, Input::Ended("a"));
        assert_eq!(give(&mut homecoming, 5000, Input::Settled(all([]))), [home([])]);
    }

    #[test]
    fn a_node_comes_home_once() {
        let mut homecoming = Homecoming::new(["a"]);
        give(&mut homecoming, 5000, Input::Settled(all(["a"])));
        assert_eq!(give(&mut homecoming, 6000, Input::Settled(all([]))), []);
        assert_eq!(give(&mut homecoming, 20_000, Input::Woken), []);
    }
}
