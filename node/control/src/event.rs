//! Events: what users are told about an object, as `kubectl describe` and `kubectl events` show it.
//!
//! The same thing told again is the same Event with a higher count: its name follows from what it says. So
//! whoever tells needs no memory, and a daemon that starts again goes on counting.

use jiff::Timestamp;
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::{Instant, whole_seconds};
use crate::view::Key;

/// Things that are told about by one node at a time; the one that was quiet for longest makes room.
const TALES_MAX: usize = 1_024;
/// After this time without being told again, a thing is new again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// A probe that fails every second is written 2, 4, 8 .. seconds after the last time, at most so many.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Something that users are told.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// About which object, or which part of it.
    pub about: ObjectReference,
    /// Who says so: `kubelet`, `default-scheduler`.
    pub by: String,
    /// On which node, where that matters.
    pub host: Option<String>,
    /// Something that should not be.
    pub warning: bool,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What is kept of an Event that was told before.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The Event's own metadata.
    pub metadata: ObjectMeta,
    /// When it first occurred.
    pub first: Timestamp,
    /// How often so far.
    pub count: i32,
}

impl Told {
    /// What an Event says of itself, whoever wrote it.
    pub fn of(event: &Event) -> Told {
        let first = event.first_timestamp.as_ref().or(event.metadata.creation_timestamp.as_ref());
        Told {
            metadata: event.metadata.clone(),
            first: first.map_or(Timestamp::MIN, |first| first.0),
            count: event.count.unwrap_or(1),
        }
    }
}

impl Notice {
    /// A notice about an object that has this metadata.
    pub fn about<K: Resource>(metadata: &ObjectMeta, by: &str, reason: &str, message: &str) -> Notice {
        Notice {
            about: ObjectReference {
                api_version: Some(K::API_VERSION.to_owned()),
                kind: Some(K::KIND.to_owned()),
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                uid: metadata.uid.clone(),
                ..ObjectReference::default()
            },
            by: by.to_owned(),
            host: None,
            warning: false,
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    /// The namespace its Event lies in: what happens to objects without one is told in `default`.
    pub fn namespace(&self) -> &str {
        self.about.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }

    /// Where its Event lies. Everything but the time decides that.
    pub fn key(&self) -> Key {
        format!("core/events/{}/{}", self.namespace(), self.name()).into()
    }

    /// The Event, when this has happened `times` times more than was `told`, the last time at `now`. `uid`
    /// is that of an Event that was not told before.
    pub fn event(&self, told: Option<&Told>, times: i32, uid: String, now: Timestamp) -> Event {
        let now = Time(whole_seconds(now));
        let metadata = match told {
            Some(told) => told.metadata.clone(),
            None => ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace().to_owned()),
                uid: Some(uid),
                creation_timestamp: Some(now.clone()),
                ..ObjectMeta::default()
            },
        };
        Event {
            metadata,
            involved_object: self.about.clone(),
            reason: Some(self.reason.clone()),
            message: Some(self.message.clone()),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource { component: Some(self.by.clone()), host: self.host.clone() }),
            reporting_component: Some(self.by.clone()),
            reporting_instance: Some(self.host.clone().unwrap_or_default()),
            first_timestamp: Some(told.map_or_else(|| now.clone(), |told| Time(told.first))),
            last_timestamp: Some(now),
            count: Some(told.map_or(0, |told| told.count).saturating_add(times)),
            ..Event::default()
        }
    }

    /// Upstream's form: the object's name, a dot and hex digits.
    fn name(&self) -> String {
        let about = &self.about;
        let parts = [
            about.uid.as_deref(),
            about.kind.as_deref(),
            about.field_path.as_deref(),
            Some(self.by.as_str()),
            self.host.as_deref(),
            Some(self.reason.as_str()),
            Some(self.message.as_str()),
        ];
        // FNV-1a; the byte between the parts is in none of them.
        let text = parts.into_iter().flat_map(|part| part.unwrap_or_default().bytes().chain([0xff]));
        let hash = text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{}.{hash:016x}", about.name.as_deref().unwrap_or_default())
    }
}

/// What a node has to tell: at once the first time, and ever more seldom while the same goes on, so that a
/// probe that fails all day does not fill the log with it.
///
/// Order of calls: [`note`](Journal::note) whatever happens, and at [`next`](Journal::next) take what is
/// [`due`](Journal::due); what could not be written is [given back](Journal::give_back).
#[derive(Debug, Default)]
pub struct Journal {
    tales: BTreeMap<Key, Tale>,
}

#[derive(Debug)]
struct Tale {
    notice: Notice,
    /// How often it happened since it was last told.
    untold: i32,
    /// How often it was told.
    tellings: u32,
    /// Not told again before.
    due: Instant,
    noted: Instant,
}

impl Journal {
    /// Something has happened at `now`.
    pub fn note(&mut self, now: Instant, notice: Notice) {
        let key = notice.key();
        if let Some(tale) = self.tales.get_mut(&key) {
            if tale.untold == 0 && now.since(tale.noted) > FORGOTTEN_AFTER {
                (tale.tellings, tale.due) = (0, now);
            }
            tale.untold = tale.untold.saturating_add(1);
            tale.noted = now;
            return;
        }
        if self.tales.len() >= TALES_MAX
            && let Some(quiet) = self.tales.iter().min_by_key(|(_, tale)| tale.noted)
        {
            let quiet = quiet.0.clone();
            self.tales.remove(&quiet);
        }
        self.tales.insert(key, Tale { notice, untold: 1, tellings: 0, due: now, noted: now });
    }

    /// What is to be told at `now`, and how often it happened.
    pub fn due(&mut self, now: Instant) -> Vec<(Notice, i32)> {
        self.tales.retain(|_, tale| tale.untold > 0 || now.since(tale.noted) <= FORGOTTEN_AFTER);
        let due = self.tales.values_mut().filter(|tale| tale.untold > 0 && tale.due <= now);
        due.map(|tale| {
            tale.tellings = tale.tellings.saturating_add(1);
            let pause = Duration::from_secs(1_u64.checked_shl(tale.tellings).unwrap_or(u64::MAX));
            tale.due = now.after(pause.min(PAUSE_MAX));
            (tale.notice.clone(), std::mem::take(&mut tale.untold))
        })
        .collect()
    }

    /// It could not be written: it is told again after the pause that follows its telling.
    pub fn give_back(&mut self, notice: &Notice, times: i32) {
        if let Some(tale) = self.tales.get_mut(&notice.key()) {
            tale.untold = tale.untold.saturating_add(times);
        }
    }

    /// When there is something to tell.
    pub fn next(&self) -> Option<Instant> {
        self.tales.values().filter(|tale| tale.untold > 0).map(|tale| tale.due).min()
    }
}

/// A part of a pod, as Events name it.
pub fn container_path(init: bool, container: &str) -> String {
    format!("spec.{}{{{container}}}", if init { "initContainers" } else { "containers" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn notice(message: &str) -> Notice {
        let metadata = ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some("u1".to_owned()),
            ..ObjectMeta::default()
        };
        Notice::about::<Pod>(&metadata, "kubelet", "Unhealthy", message)
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1000)
    }

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    #[test]
    fn the_same_told_again_is_the_same_event_with_a_higher_count() {
        let first = notice("a").event(None, 1, "e1".to_owned(), wall(10));
        let again = notice("a").event(Some(&Told::of(&first)), 3, "e2".to_owned(), wall(70));
        assert_eq!(again.metadata, first.metadata);
        assert_eq!((again.count, again.first_timestamp.clone()), (Some(4), first.first_timestamp.clone()));
        assert_eq!(again.last_timestamp, Some(Time(wall(70))));
        assert_eq!(notice("a").key(), notice("a").key());
        let mut elsewhere = notice("a");
        elsewhere.about.field_path = Some(container_path(false, "main"));
        for other in [notice("b"), elsewhere] {
            assert_ne!(notice("a").key(), other.key());
        }
    }

    #[test]
    fn what_goes_on_is_told_ever_more_seldom_and_nothing_is_lost() {
        let mut journal = Journal::default();
        let (mut told, mut counted) = (Vec::new(), 0);
        for second in 0..600 {
            journal.note(at(second), notice("failed"));
            if journal.next().is_some_and(|next| next <= at(second)) {
                let due = journal.due(at(second));
                counted += due.iter().map(|(_, times)| times).sum::<i32>();
                told.push(second);
            }
        }
        assert_eq!(told, [0, 2, 6, 14, 30, 62, 126, 254, 510]);
        assert_eq!(counted, 511, "what happened since is told next time");
    }

    #[test]
    fn what_was_quiet_for_long_is_news_again() {
        let mut journal = Journal::default();
        for second in [0, 1, 2, 3] {
            journal.note(at(second), notice("failed"));
            journal.due(at(second));
        }
        assert!(journal.next().is_some_and(|next| next > at(3)));
        journal.due(at(100));
        journal.note(at(2_000), notice("failed"));
        assert_eq!(journal.due(at(2_000)).len(), 1);
    }

    #[test]
    fn what_could_not_be_written_is_told_later() {
        let mut journal = Journal::default();
        journal.note(at(0), notice("failed"));
        let due = journal.due(at(0));
        assert_eq!(journal.next(), None);
        journal.give_back(&due[0].0, due[0].1);
        assert_eq!(journal.next(), Some(at(2)));
        assert_eq!(journal.due(at(2)), due);
    }

    #[test]
    fn a_node_remembers_so_many_things_and_no_more() {
        let mut journal = Journal::default();
        for n in 0..TALES_MAX as u64 + 10 {
            journal.note(at(n), notice(&n.to_string()));
        }
        assert_eq!(journal.tales.len(), TALES_MAX);
        assert!(journal.tales.contains_key(&notice(&(TALES_MAX as u64 + 9).to_string()).key()));
    }
}
