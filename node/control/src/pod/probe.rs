//! When probes run, and what their answers mean.

use k8s_openapi::api::core::v1::{Container, Probe};
use std::time::Duration;

use super::ProbeKind;
use crate::time::Instant;

/// How soon a probe that has never passed is asked again.
const SOON: Duration = Duration::from_secs(1);

/// All probes of one start of a container.
#[derive(Clone, Debug, Default)]
pub(super) struct Probes {
    startup: Counts,
    readiness: Counts,
    liveness: Counts,
}

/// The answers to one probe so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    asked: bool,
    last_asked: Option<Instant>,
    passed: bool,
    /// It has passed once since the container was started.
    has_passed: bool,
    successes: i32,
    failures: i32,
    /// When the last failure that counts was asked for.
    failed_at: Option<Instant>,
}

/// What an answer calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing, or a change of readiness.
    Noted,
    /// It failed, and does not count: it was asked only to see soon that it passes.
    TooEarly,
    /// The container must be restarted.
    Unhealthy,
}

impl Probes {
    /// True once the container counts as started.
    pub(super) fn started(&self, container: &Container) -> bool {
        container.startup_probe.is_none() || self.startup.passed
    }

    /// True if the container takes requests.
    pub(super) fn ready(&self, container: &Container) -> bool {
        self.started(container) && (container.readiness_probe.is_none() || self.readiness.passed)
    }

    /// The probes to ask now; they are noted as asked.
    pub(super) fn due<'c>(
        &mut self,
        container: &'c Container,
        running_since: Instant,
        now: Instant,
    ) -> Vec<(ProbeKind, &'c Probe)> {
        let moments = self.moments(container, running_since);
        let due: Vec<_> = moments.into_iter().filter(|(at, ..)| *at <= now).collect();
        for (_, kind, _) in &due {
            let counts = self.counts(*kind);
            counts.asked = true;
            counts.last_asked = Some(now);
        }
        due.into_iter().map(|(_, kind, probe)| (kind, probe)).collect()
    }

    /// When the next probe is due.
    pub(super) fn next(&self, container: &Container, running_since: Instant) -> Option<Instant> {
        self.moments(container, running_since).into_iter().map(|(at, ..)| at).min()
    }

    /// When each probe that has its answer, or was never asked, is due.
    fn moments<'c>(
        &self,
        container: &'c Container,
        running_since: Instant,
    ) -> Vec<(Instant, ProbeKind, &'c Probe)> {
        let started = self.started(container);
        let all = [
            (ProbeKind::Startup, &container.startup_probe, &self.startup, !started),
            (ProbeKind::Readiness, &container.readiness_probe, &self.readiness, started),
            (ProbeKind::Liveness, &container.liveness_probe, &self.liveness, started),
        ];
        let waiting = all.into_iter().filter(|(_, _, counts, wanted)| *wanted && !counts.asked);
        let moment = |(kind, probe, counts, _): (ProbeKind, &'c Option<Probe>, &Counts, bool)| {
            let probe = probe.as_ref()?;
            let first = running_since.after(seconds(probe.initial_delay_seconds, 0));
            // Liveness has nothing to become.
            let waits_for_first = !counts.has_passed && kind != ProbeKind::Liveness;
            let pause = if waits_for_first { SOON.min(period(probe)) } else { period(probe) };
            let at = counts.last_asked.map_or(first, |last| last.after(pause));
            Some((at, kind, probe))
        };
        waiting.filter_map(moment).collect()
    }

    /// Notes an answer.
    pub(super) fn answered(&mut self, container: &Container, kind: ProbeKind, ok: bool) -> Finding {
        let probe = match kind {
            ProbeKind::Startup => &container.startup_probe,
            ProbeKind::Readiness => &container.readiness_probe,
            ProbeKind::Liveness => &container.liveness_probe,
        };
        let Some(probe) = probe else { return Finding::Noted };
        let counts = self.counts(kind);
        counts.asked = false;
        if ok {
            counts.failures = 0;
            counts.successes = counts.successes.saturating_add(1);
            counts.passed |= counts.successes >= probe.success_threshold.unwrap_or(1);
            counts.has_passed |= counts.passed;
            return Finding::Noted;
        }
        // So many failures, so many periods: a startup probe gives a program that much time.
        let counted = counts.failed_at.map(|at| at.after(period(probe)));
        if !counts.has_passed && counted > counts.last_asked && kind != ProbeKind::Liveness {
            counts.successes = 0;
            return Finding::TooEarly;
        }
        counts.failed_at = counts.last_asked;
        counts.successes = 0;
        counts.failures = counts.failures.saturating_add(1);
        if counts.failures < probe.failure_threshold.unwrap_or(3) {
            return Finding::Noted;
        }
        counts.passed = false;
        if kind == ProbeKind::Readiness { Finding::Noted } else { Finding::Unhealthy }
    }

    fn counts(&mut self, kind: ProbeKind) -> &mut Counts {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        }
    }
}

/// How long a probe may take.
pub(super) fn timeout(probe: &Probe) -> Duration {
    seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1))
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10).max(Duration::from_secs(1))
}

fn seconds(held: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(held.map_or(default, |seconds| u64::try_from(seconds).unwrap_or(0)))
}
