//! Whose pack is copied next, carried out: [`policy::Turns`] says it, and whoever asks waits here.
//!
//! ```text
//! copies of artifacts ─┐                                   ┌─ granted: the pack is copied, then the turn ends
//! copies of hints ─────┴─ take ─▶ policy ── within the rate ┴─ dropped: the ask or the turn ends
//! ```
//!
//! A turn is room for one pack in memory. The rate is the region's: its processes share it by their number.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_region_policy::turns::{self as policy, Next, Source, Ticket};
use longshore_schemas::PackId;
use longshore_swarm_policy::Rate;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::reports::Reports;

/// How often the rate is set anew by how many processes there are.
const SHARE_INTERVAL: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Inner>);

struct Inner {
    begun: Instant,
    bytes_per_second: u64,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    policy: policy::Turns,
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
}

impl Turns {
    pub(crate) fn new(at_once_max: usize, bytes_per_second: u64) -> Self {
        let policy = policy::Turns::new(at_once_max, Rate::new(bytes_per_second));
        let state = Mutex::new(State { policy, waiting: BTreeMap::new() });
        Self(Arc::new(Inner { begun: Instant::now(), bytes_per_second, state, changed: Notify::new() }))
    }

    /// Gives turns for as long as there is anyone to take one.
    pub(crate) async fn run(self, reports: Arc<Reports>, shutdown: CancellationToken) {
        let mut shared_at = None::<Instant>;
        loop {
            if shared_at.is_none_or(|at| at.elapsed() >= SHARE_INTERVAL) {
                shared_at = Some(Instant::now());
                self.state().policy.set_rate(self.0.bytes_per_second / reports.processes());
            }
            let not_before = self.give();
            tokio::select! {
                () = self.0.changed.notified() => {}
                () = sleep_until(not_before) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Every turn that there is now; answers when there may be the next if nothing changes.
    fn give(&self) -> Option<Instant> {
        let now = self.0.begun.elapsed();
        let mut state = self.state();
        loop {
            let ticket = match state.policy.next(now) {
                Next::Go(ticket) => ticket,
                Next::NotBefore(moment) => return Some(self.0.begun + moment),
                Next::Nothing => return None,
            };
            let waits = state.waiting.remove(&ticket);
            if waits.is_none_or(|waits| waits.send(()).is_err()) {
                state.policy.end(ticket, 0);
            }
        }
    }

    /// Waits for a turn to copy this pack. Nobody else copies it in this process while the turn lasts.
    pub(crate) async fn take(&self, source: &Source, pack: PackId, bytes: u64) -> Turn {
        let (sender, granted) = oneshot::channel();
        let ticket = {
            let mut state = self.state();
            let ticket = state.policy.ask(source, pack, bytes);
            state.waiting.insert(ticket, sender);
            ticket
        };
        let turn = Turn { turns: self.clone(), ticket, moved: 0 };
        self.0.changed.notify_one();
        // Nothing but the turn's end takes the sender away.
        let _ = granted.await;
        turn
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Given back when dropped, also before it has come.
pub(crate) struct Turn {
    turns: Turns,
    ticket: Ticket,
    moved: u64,
}

impl Turn {
    /// So many bytes were copied; what else was counted for the turn does not count.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.moved = bytes;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        state.waiting.remove(&self.ticket);
        state.policy.end(self.ticket, self.moved);
        drop(state);
        self.turns.0.changed.notify_one();
    }
}
