//! Where each service stands, for the region: a level per service, said again after each reconnect.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use longshore_schemas::{
    ServiceName,
    events::{GoalVersion, NodeStatus},
    stream::NodeReport,
};
use longshore_service::metrics::Counters;
use tokio::sync::Notify;

static STATUSES: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_node_statuses", "Statuses that this node's services went through", ["status"])
});

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Reports(Arc<Inner>);

#[derive(Default)]
struct Inner {
    levels: Mutex<BTreeMap<ServiceName, (NodeReport, bool)>>,
    changed: Notify,
}

impl Reports {
    /// The newest word on a service; it replaces the one before, sent or not.
    pub fn say(&self, report: NodeReport) {
        let mut levels = self.lock();
        if levels.get(&report.service).is_some_and(|(said, _)| *said == report) {
            return;
        }
        tracing::info!(service = %report.service, version = %report.version, status = ?report.status,
            message = report.message, "service");
        STATUSES.count([format!("{:?}", report.status).as_str()], 1);
        levels.insert(report.service.clone(), (report, false));
        self.0.changed.notify_one();
    }

    /// What was last said of a service, if it was for this version of its goal.
    pub fn status_of(&self, service: &ServiceName, version: GoalVersion) -> Option<NodeStatus> {
        self.lock().get(service).filter(|(report, _)| report.version == version).map(|(report, _)| report.status)
    }

    /// All levels, as after a reconnect.
    pub fn all(&self) -> Vec<NodeReport> {
        self.take(|_| true)
    }

    /// Waits for levels that were not sent yet. Cancel safe.
    pub async fn unsent(&self) -> Vec<NodeReport> {
        loop {
            let unsent = self.take(|sent| !sent);
            if !unsent.is_empty() {
                return unsent;
            }
            self.0.changed.notified().await;
        }
    }

    fn take(&self, which: impl Fn(bool) -> bool) -> Vec<NodeReport> {
        let mut levels = self.lock();
        let wanted = levels.values_mut().filter(|(_, sent)| which(*sent));
        wanted
            .map(|(report, sent)| {
                *sent = true;
                report.clone()
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, (NodeReport, bool)>> {
        self.0.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
