//! The read model: what the API asks of the projections. Implemented by the control role; the API knows only this trait.
//!
//! Every control node holds all projections, so each answer is local and immediate. An answer may be older than a request
//! that was just appended: [`ReadModel::outcome`] waits for that request, and what is read after it includes it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    ArtifactId, ClaimId, JobId, NodeId, QueueName, RequestId, ServiceName,
    events::Refusal,
    http::{
        ArtifactQuery, ArtifactView, ClaimedJob, FleetView, JobQuery, JobView, NodeHistoryQuery, NodeHistoryView,
        NodeQuery, NodeView, Page, ProcessingView, QueueView, RetentionView, ServiceView,
    },
};

/// Where a request stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestPosition {
    pub topic: String,
    pub partition: u32,
    pub offset: u64,
}

impl fmt::Display for RequestPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// A partition of a request topic.
pub type RequestPartition = (&'static str, u32);

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Decided; whatever it changed is in the projections.
    Processed,
    Refused(Refusal),
    /// Not processed within the wait.
    Pending,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the projections cannot be read: {0}")]
    Unavailable(String),
    /// The query contradicts itself; the text names the field.
    #[error("{0}")]
    Invalid(String),
    /// The claim was used, and what it got is over: it gets nothing any more.
    #[error("{0}")]
    Spent(String),
}

#[async_trait]
pub trait ReadModel: Send + Sync + 'static {
    /// What keeps requests from being processed here, a line for each; empty if all is well.
    fn trouble(&self) -> Vec<String> {
        Vec::new()
    }

    /// How far each partition of each request topic is processed here.
    async fn processing(&self) -> Vec<(RequestPartition, ProcessingView)> {
        Vec::new()
    }

    /// Reads the whole log, compares the projections with a replay of it, and says what is wrong: a report in JSON.
    async fn verify(&self) -> Result<serde_json::Value, ReadError> {
        Err(ReadError::Unavailable("these projections cannot be compared with a log".to_owned()))
    }

    /// What would be retired and collected now, and why all else is kept. Reads much of the main bucket.
    async fn retention(self: Arc<Self>) -> Result<RetentionView, ReadError> {
        Err(ReadError::Unavailable("these projections are of no bucket".to_owned()))
    }

    /// Where a service runs, counted. Looks at each node that ever ran it. None if none did.
    async fn fleet(self: Arc<Self>, service: ServiceName) -> Result<Option<FleetView>, ReadError> {
        Err(ReadError::Unavailable(format!("these projections have no nodes of {service}")))
    }

    fn queues(&self) -> Result<Vec<QueueView>, ReadError>;
    fn jobs(&self, query: &JobQuery) -> Result<Page<JobView>, ReadError>;
    fn job(&self, job: &JobId) -> Result<Option<JobView>, ReadError>;
    /// The job that a request became.
    fn job_of_request(&self, request: &RequestId) -> Result<Option<JobView>, ReadError>;
    fn artifacts(&self, query: &ArtifactQuery) -> Result<Page<ArtifactView>, ReadError>;
    fn artifact(&self, artifact: &ArtifactId) -> Result<Option<ArtifactView>, ReadError>;
    fn services(&self) -> Result<Vec<ServiceView>, ReadError>;
    fn service(&self, service: &ServiceName) -> Result<Option<ServiceView>, ReadError>;
    fn nodes(&self, query: &NodeQuery) -> Result<Page<NodeView>, ReadError>;
    /// The nodes of this name, of which each region may have one, and what happened to each: nothing of it, if the limit is 0.
    async fn node(self: Arc<Self>, node: NodeId, query: NodeHistoryQuery) -> Result<Vec<NodeHistoryView>, ReadError>;

    /// Waits until the request at this position was processed and applied here, or the time is over.
    async fn outcome(&self, request: &RequestPosition, wait: Duration) -> Result<Outcome, ReadError>;

    /// Waits until the claim has a job that it still runs, or the time is over. An error if it had one. Cancel safe.
    async fn claimed(
        &self,
        queue: &QueueName,
        claim: &ClaimId,
        wait: Duration,
    ) -> Result<Option<ClaimedJob>, ReadError>;

    /// Waits until the service's projection satisfies the condition, or the time is over; answers its latest state.
    async fn service_when(
        &self,
        service: &ServiceName,
        wait: Duration,
        condition: &(dyn for<'a> Fn(&'a ServiceView) -> bool + Send + Sync),
    ) -> Result<Option<ServiceView>, ReadError>;
}
