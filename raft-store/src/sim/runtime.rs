//! Openraft's simulated runtime, with processes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::{SimJoinError, SimRuntime};

use super::process::Owned;

/// Virtual time, one thread, first in first out, chance from a seed; every task belongs to the
/// [`Process`](super::Process) of the task that spawned it.
pub struct SimRt(SimRuntime);

impl SimRt {
    /// A world whose whole course follows from `seed`.
    pub fn with_seed(seed: u64) -> Self {
        SimRt(SimRuntime::with_seed(seed))
    }
}

impl fmt::Debug for SimRt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRt")
    }
}

/// Ends with the task's output, or with `Cancelled` when its process was killed.
pub struct SimJoinHandle<T>(openraft_rt_sim::SimJoinHandle<Option<T>>);

impl<T> Future for SimJoinHandle<T> {
    type Output = Result<T, SimJoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|joined| joined?.ok_or(SimJoinError::Cancelled))
    }
}

impl AsyncRuntime for SimRt {
    type JoinError = SimJoinError;
    type JoinHandle<T: OptionalSend + 'static> = SimJoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = <SimRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        SimJoinHandle(SimRuntime::spawn(Owned::new(future)))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        SimRt(SimRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    /// Runs `work` at once: in virtual time it takes none, and a thread would end at another moment in each run.
    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = std::io::Result<T>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Ok(work()))
    }
}

impl SimRt {
    /// Records every spawn, poll, wake and timer from now on; see [`take_trace`](Self::take_trace).
    pub fn record_trace(&mut self) {
        self.0.record_trace(true);
    }

    /// What happened since recording began, one line each: equal for equal seeds.
    pub fn take_trace(&self) -> Vec<String> {
        self.0.take_trace()
    }
}
