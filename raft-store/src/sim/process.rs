//! Processes of the simulated world: groups of tasks that live, stand still and die together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

thread_local! {
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// One run of one simulated program. Tasks spawned by its tasks belong to it.
#[derive(Clone)]
pub struct Process(Arc<Mutex<Inner>>);

struct Inner {
    name: String,
    state: Running,
    /// Its tasks, in the order they were spawned, each with its latest waker.
    tasks: BTreeMap<u64, Option<Waker>>,
    next_task: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    Runs,
    /// As by SIGSTOP: nothing is polled, and time goes on.
    Paused,
    /// As by SIGKILL: each task is dropped where it stands.
    Dead,
}

impl Process {
    /// A process without tasks.
    pub fn new(name: impl Into<String>) -> Self {
        let inner = Inner { name: name.into(), state: Running::Runs, tasks: BTreeMap::new(), next_task: 0 };
        Process(Arc::new(Mutex::new(inner)))
    }

    /// The process whose task runs now; none outside of all.
    pub fn current() -> Option<Process> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Runs `future` as a task of this process.
    pub fn spawn<F>(&self, future: F) -> super::SimJoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let _entered = Entered::enter(Some(self.clone()));
        <super::SimRt as openraft::AsyncRuntime>::spawn(future)
    }

    /// Ends every task at once, without a chance to clean up. What they own is dropped.
    pub fn kill(&self) {
        self.change(Running::Dead);
    }

    /// Stops polling its tasks until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.change(Running::Paused);
    }

    /// Goes on after [`pause`](Self::pause); the dead stay dead.
    pub fn resume(&self) {
        self.change(Running::Runs);
    }

    /// Whether it was not killed.
    pub fn is_alive(&self) -> bool {
        self.lock().state != Running::Dead
    }

    fn change(&self, state: Running) {
        let wake: Vec<Waker> = {
            let mut inner = self.lock();
            if inner.state == Running::Dead {
                return;
            }
            inner.state = state;
            inner.tasks.values().flatten().cloned().collect()
        };
        wake.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.lock().name)
    }
}

/// A task's future with its process around it. Ends with `None` when the process is killed.
pub(super) struct Owned<F> {
    process: Option<(Process, u64)>,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Owned<F> {
    pub(super) fn new(future: F) -> Self {
        let process = Process::current().map(|process| {
            let mut inner = process.lock();
            inner.next_task += 1;
            let task = inner.next_task;
            inner.tasks.insert(task, None);
            drop(inner);
            (process, task)
        });
        Owned { process, future: Some(Box::pin(future)) }
    }
}

impl<F: Future> Future for Owned<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some((process, task)) = &this.process {
            let state = {
                let mut inner = process.lock();
                inner.tasks.insert(*task, Some(cx.waker().clone()));
                inner.state
            };
            match state {
                Running::Runs => {}
                Running::Paused => return Poll::Pending,
                Running::Dead => {
                    let _entered = Entered::enter(Some(process.clone()));
                    this.future = None;
                    return Poll::Ready(None);
                }
            }
        }
        let _entered = Entered::enter(this.process.as_ref().map(|(process, _)| process.clone()));
        let Some(future) = &mut this.future else {
            return Poll::Ready(None);
        };
        future.as_mut().poll(cx).map(Some)
    }
}

impl<F> Drop for Owned<F> {
    fn drop(&mut self) {
        if let Some((process, task)) = &self.process {
            process.lock().tasks.remove(task);
        }
    }
}

/// Runs `spawn` as nobody's task.
pub(super) fn outside<T>(spawn: impl FnOnce() -> T) -> T {
    let _entered = Entered::enter(None);
    spawn()
}

/// Marks whose task runs, until dropped.
struct Entered(Option<Process>);

impl Entered {
    fn enter(process: Option<Process>) -> Self {
        Entered(CURRENT.replace(process))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
