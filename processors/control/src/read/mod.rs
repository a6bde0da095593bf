//! The read model over the processors' tables.
//!
//! Each query reads a snapshot of every partition it needs, so what it says of one queue, artifact or service is of one
//! moment; partitions may be a moment apart. Lists are newest first across partitions: each partition answers at most a
//! page, and the pages are merged.

mod artifacts;
mod filter;
mod fleet;
mod jobs;
mod nodes;
mod page;
mod services;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use longshore_fleet::Fleet;
use longshore_goals::Goals;
use longshore_log::Log;
use longshore_processor::{Processor, StateError};
use longshore_queue::Queue;
use longshore_replication::{Replication, Retention};
use longshore_runtime::{Handle, Health, Wire};
use longshore_schemas::{
    ArtifactId, ClaimId, JobId, NodeId, QueueName, RequestId, ServiceName,
    events::Event,
    http::{
        ArtifactQuery, ArtifactView, ClaimedJob, FleetView, JobQuery, JobView, NodeHistoryQuery, NodeHistoryView,
        NodeQuery, NodeView, Page, ProcessingView, QueueView, RetentionView, ServiceView,
    },
    read::{Outcome, ReadError, ReadModel, RequestPartition, RequestPosition},
};

use crate::{
    Collection, Error, PartitionFingerprint,
    collection::plan,
    live,
    metrics::role_name,
    verify::verify_running,
    waiters::{ClaimWaiters, ServiceWaiters},
};

pub(crate) struct Projections {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) queue: Handle<Queue>,
    pub(crate) replication: Handle<Replication>,
    pub(crate) goals: Handle<Goals>,
    pub(crate) fleet: Handle<Fleet>,
    pub(crate) summaries: Summaries,
    pub(crate) claims: Arc<ClaimWaiters>,
    pub(crate) services: Arc<ServiceWaiters>,
    pub(crate) retention: Retention,
    pub(crate) collection: Option<Collection>,
}

pub(crate) use fleet::Summaries;
pub(crate) use jobs::one as job;

impl Projections {
    /// The live state in one hash per partition.
    pub(crate) fn fingerprints(&self) -> Result<Vec<PartitionFingerprint>, Error> {
        let mut all = live(&self.queue)?;
        all.extend(live(&self.replication)?);
        all.extend(live(&self.goals)?);
        all.extend(live(&self.fleet)?);
        Ok(all)
    }
}

/// The state's errors as the API sees them. (The orphan rule forbids a `From`.)
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn unavailable(error: StateError) -> ReadError {
    tracing::error!(%error, "projection not readable");
    ReadError::Unavailable(error.to_string())
}

fn crowded() -> ReadError {
    ReadError::Unavailable("too many calls wait; try again later".to_owned())
}

#[async_trait]
impl ReadModel for Projections {
    fn trouble(&self) -> Vec<String> {
        let statuses = [
            (Queue::NAME, self.queue.statuses()),
            (Replication::NAME, self.replication.statuses()),
            (Goals::NAME, self.goals.statuses()),
            (Fleet::NAME, self.fleet.statuses()),
        ];
        let lines = statuses.into_iter().flat_map(|(processor, statuses)| {
            let troubled = (0u32..).zip(statuses).filter_map(|(partition, status)| Some((partition, status.error?)));
            troubled.map(move |(partition, error)| format!("{processor}, partition {partition}: {error}"))
        });
        lines.collect()
    }

    async fn processing(&self) -> Vec<(RequestPartition, ProcessingView)> {
        let health = [
            (topic_of::<Queue>(), self.queue.health().await),
            (topic_of::<Replication>(), self.replication.health().await),
            (topic_of::<Goals>(), self.goals.health().await),
            (topic_of::<Fleet>(), self.fleet.health().await),
        ];
        let views = health.into_iter().flat_map(|(topic, health)| {
            health.into_iter().map(move |Health { processor, partition, status, applied, lag }| {
                let view = ProcessingView {
                    processor: processor.to_owned(),
                    role: role_name(status.role).to_owned(),
                    owner: None,
                    processed: applied.request_offset,
                    lag: lag.unwrap_or_default(),
                    error: status.error,
                };
                ((topic, partition), view)
            })
        });
        views.collect()
    }

    async fn verify(&self) -> Result<serde_json::Value, ReadError> {
        let unreadable = |error: &dyn std::error::Error| ReadError::Unavailable(longshore_runtime::chain(error));
        let report = verify_running(&*self.log, || self.fingerprints()).await.map_err(|error| unreadable(&error))?;
        serde_json::to_value(report).map_err(|error| unreadable(&error))
    }

    async fn retention(self: Arc<Self>) -> Result<RetentionView, ReadError> {
        let nowhere = || ReadError::Unavailable("this process does not know the main bucket".to_owned());
        let (retention, collection) = (self.retention.clone(), self.collection.clone().ok_or_else(nowhere)?);
        plan(self, &retention, &collection, longshore_log::clock::now()).await
    }

    async fn fleet(self: Arc<Self>, service: ServiceName) -> Result<Option<FleetView>, ReadError> {
        let counted = tokio::task::spawn_blocking(move || self.summaries.of_service(&self.fleet, &service)).await;
        let counted = counted.map_err(|error| ReadError::Unavailable(error.to_string()))?.map_err(unavailable)?;
        Ok((counted.nodes > 0).then_some(counted))
    }

    fn queues(&self) -> Result<Vec<QueueView>, ReadError> {
        jobs::queues(&self.queue).map_err(unavailable)
    }

    fn jobs(&self, query: &JobQuery) -> Result<Page<JobView>, ReadError> {
        jobs::list(&self.queue, query)
    }

    fn job(&self, job: &JobId) -> Result<Option<JobView>, ReadError> {
        jobs::one(&self.queue, job).map_err(unavailable)
    }

    fn job_of_request(&self, request: &RequestId) -> Result<Option<JobView>, ReadError> {
        jobs::of_request(&self.queue, request).map_err(unavailable)
    }

    fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<ArtifactView>, ReadError> {
        artifacts::list(&self.replication, query)
    }

    fn artifact(&self, artifact: &ArtifactId) -> Result<Option<ArtifactView>, ReadError> {
        artifacts::one(&self.replication, artifact).map_err(unavailable)
    }

    fn services(&self) -> Result<Vec<ServiceView>, ReadError> {
        services::list(&self.goals).map_err(unavailable)
    }

    fn service(&self, service: &ServiceName) -> Result<Option<ServiceView>, ReadError> {
        services::one(&self.goals, service).map_err(unavailable)
    }

    fn nodes(&self, query: &NodeQuery) -> Result<Page<NodeView>, ReadError> {
        nodes::list(&self.fleet, query)
    }

    async fn node(self: Arc<Self>, node: NodeId, query: NodeHistoryQuery) -> Result<Vec<NodeHistoryView>, ReadError> {
        let found = tokio::task::spawn_blocking(move || nodes::named(&self.fleet, &node, &query)).await;
        found.map_err(|error| ReadError::Unavailable(error.to_string()))?
    }

    async fn outcome(&self, request: &RequestPosition, wait: Duration) -> Result<Outcome, ReadError> {
        let RequestPosition { topic, partition, offset } = request;
        let topic = topic.as_str();
        let outcome = if topic == topic_of::<Queue>() {
            self.queue.outcome(*partition, *offset, wait).await
        } else if topic == topic_of::<Replication>() {
            self.replication.outcome(*partition, *offset, wait).await
        } else if topic == topic_of::<Goals>() {
            self.goals.outcome(*partition, *offset, wait).await
        } else if topic == topic_of::<Fleet>() {
            self.fleet.outcome(*partition, *offset, wait).await
        } else {
            return Err(ReadError::Invalid(format!("topic: {topic:?} is not a request topic")));
        };
        Ok(outcome)
    }

    async fn claimed(
        &self,
        queue: &QueueName,
        claim: &ClaimId,
        wait: Duration,
    ) -> Result<Option<ClaimedJob>, ReadError> {
        let waiter = self.claims.wait_for(claim).ok_or_else(crowded)?;
        let look = || jobs::claimed(&self.queue, queue, claim);
        match tokio::time::timeout(wait, waiter.until(look)).await {
            Ok(claimed) => claimed.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn service_when(
        &self,
        service: &ServiceName,
        wait: Duration,
        condition: &(dyn for<'a> Fn(&'a ServiceView) -> bool + Send + Sync),
    ) -> Result<Option<ServiceView>, ReadError> {
        let waiter = self.services.wait_for(&service.as_str().to_owned()).ok_or_else(crowded)?;
        let look = || {
            let view = services::one(&self.goals, service).map_err(unavailable)?;
            Ok(view.filter(|view| condition(view)))
        };
        match tokio::time::timeout(wait, waiter.until(look)).await {
            Ok(view) => view.map(Some),
            Err(_) => self.service(service),
        }
    }
}

fn topic_of<P: Wire>() -> &'static str {
    P::Request::TOPIC.name
}
