//! What others see of a partition.

use std::sync::Arc;

use longshore_partition::{Applied, Listener};
use longshore_schemas::events::{Fact, FactEvent};
use tokio::sync::watch;

use crate::{outcomes::Outcomes, service::Observer};

pub(crate) struct Shared<F> {
    partition: u32,
    pub(crate) applied: watch::Sender<Applied>,
    pub(crate) outcomes: Outcomes,
    observer: Arc<dyn Observer<F>>,
}

impl<F: FactEvent> Shared<F> {
    /// `applied` is what the stored state includes already.
    pub(crate) fn new(partition: u32, applied: Applied, observer: Arc<dyn Observer<F>>) -> Arc<Self> {
        let outcomes = Outcomes::new(applied.request_offset);
        Arc::new(Self { partition, applied: watch::Sender::new(applied), outcomes, observer })
    }
}

/// Tells those who share it.
pub(crate) struct Tell<F>(pub(crate) Arc<Shared<F>>);

impl<F: FactEvent> Listener<F> for Tell<F> {
    fn applied(&mut self, applied: Applied, facts: &[Fact<F>]) {
        let Self(shared) = self;
        shared.applied.send_replace(applied);
        shared.outcomes.advance(applied.request_offset, facts.iter().filter_map(|fact| fact.event.processed()));
        if !facts.is_empty() {
            shared.observer.applied(shared.partition, facts);
        }
    }
}
