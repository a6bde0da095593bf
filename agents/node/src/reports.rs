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

use crate::goals::SERVICES_MAX;

static STATUSES: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_node_statuses", "Statuses that this node's services went through", ["status"])
});

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Reports(Arc<Inner>);

#[derive(Default)]
struct Inner {
    levels: Mutex<Levels>,
    changed: Notify,
}

#[derive(Default)]
struct Levels {
    /// What was said, and whether it was sent.
    said: BTreeMap<ServiceName, (NodeReport, bool)>,
    /// What keeps a service from hearing of its newest goal: told with whatever else is said of it.
    trouble: BTreeMap<ServiceName, String>,
}

impl Reports {
    /// The newest word on a service; it replaces the one before, sent or not.
    pub fn say(&self, report: NodeReport) {
        let levels = &mut self.lock().said;
        if levels.get(&report.service).is_some_and(|(said, _)| *said == report) {
            return;
        }
        tracing::info!(service = %report.service, version = %report.version, status = ?report.status,
            message = report.message, "service");
        STATUSES.count([format!("{:?}", report.status).as_str()], 1);
        levels.insert(report.service.clone(), (report, false));
        self.0.changed.notify_one();
    }

    /// Sets or takes away what keeps a service's newest goal from being held.
    pub fn trouble(&self, service: &ServiceName, version: GoalVersion, trouble: Option<String>) {
        let levels = &mut *self.lock();
        if levels.trouble.get(service) == trouble.as_ref() {
            return;
        }
        match trouble {
            // Whoever makes up services fills nothing.
            Some(_) if levels.trouble.len() >= SERVICES_MAX => return,
            Some(trouble) => drop(levels.trouble.insert(service.clone(), trouble)),
            None => drop(levels.trouble.remove(service)),
        }
        match levels.said.get_mut(service) {
            Some((_, sent)) => *sent = false,
            // Nothing was ever said of it: what is in its way is told all the same.
            None if levels.trouble.contains_key(service) => {
                let (status, artifact, port, message) = (NodeStatus::Fetching, None, None, None);
                let report = NodeReport { service: service.clone(), version, artifact, status, port, message };
                levels.said.insert(service.clone(), (report, false));
            }
            None => {}
        }
        self.0.changed.notify_one();
    }

    /// What was last said of a service, if it was for this version of its goal.
    pub fn status_of(&self, service: &ServiceName, version: GoalVersion) -> Option<NodeStatus> {
        self.lock().said.get(service).filter(|(report, _)| report.version == version).map(|(report, _)| report.status)
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
        let Levels { said, trouble } = &mut *self.lock();
        let wanted = said.values_mut().filter(|(_, sent)| which(*sent));
        wanted
            .map(|(report, sent)| {
                *sent = true;
                let mut report = report.clone();
                if let Some(trouble) = trouble.get(&report.service) {
                    let said = report.message.take().map_or_else(String::new, |said| format!("{said}\n"));
                    report.message = Some(said + trouble);
                }
                report
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Levels> {
        self.0.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trouble_is_told_with_whatever_is_said_until_it_is_over() {
        let reports = Reports::default();
        let service: ServiceName = "web".parse().expect("valid");
        let (version, artifact) = (GoalVersion { revision: 1, step: 1 }, None);
        let said = |status, message: Option<&str>| {
            let (service, message) = (service.clone(), message.map(str::to_owned));
            NodeReport { service, version, artifact, status, port: None, message }
        };
        let told = async || reports.unsent().await.into_iter().next().expect("one").message;
        reports.say(said(NodeStatus::Healthy, None));
        assert_eq!(told().await, None);
        reports.trouble(&service, version, Some("disk full".to_owned()));
        assert_eq!(told().await.as_deref(), Some("disk full"));
        reports.say(said(NodeStatus::Failed, Some("crashed")));
        assert_eq!(told().await.as_deref(), Some("crashed\ndisk full"));
        assert_eq!(reports.all()[0].message.as_deref(), Some("crashed\ndisk full"), "after a reconnect too");
        reports.trouble(&service, version, None);
        assert_eq!(told().await.as_deref(), Some("crashed"));
    }
}
