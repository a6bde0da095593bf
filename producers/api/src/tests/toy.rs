//! Projections for tests: decides each request when its outcome is asked for, with the simplest rules that the API can
//! be tested on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use longshore_log::{Log, ReadLimit, TopicPartition};
use longshore_schemas::{
    ArtifactId, ClaimId, JobId, NodeId, QueueName, RequestId, ServiceName, Timestamp, codec,
    events::{
        ArtifactRequest, AttemptOutcome, BuildRequest, GoalRequest, GoalVersion, ImportRequested, Refusal, RefusalCode,
        Request, RolloutPlan,
    },
    http::{
        ArtifactQuery, ArtifactView, ClaimedJob, JobFailure, JobQuery, JobStatus, JobView, NodeHistoryQuery,
        NodeHistoryView, NodeQuery, NodeView, Page, ProcessingView, QueueView, RevisionView, RolloutStatus,
        ServiceView, Source,
    },
    read::{Outcome, ReadError, ReadModel, RequestPartition, RequestPosition},
    topics,
};
use tokio::sync::watch;

#[derive(Default)]
pub(super) struct State {
    pub jobs: BTreeMap<JobId, JobView>,
    by_request: BTreeMap<RequestId, JobId>,
    pub artifacts: Vec<ArtifactView>,
    pub services: BTreeMap<ServiceName, ServiceView>,
    pub nodes: Vec<NodeHistoryView>,
    /// No request gets processed.
    pub stuck: bool,
    /// Reading the queues panics.
    pub panics: bool,
    /// Every pin is refused for this reason.
    pub pin_refusal: Option<String>,
}

pub(super) struct Toy {
    log: Arc<dyn Log>,
    state: Mutex<State>,
    pub claimed: watch::Sender<Option<ClaimedJob>>,
}

type Refused = (RefusalCode, String);

impl Toy {
    pub(super) fn new(log: Arc<dyn Log>) -> Self {
        Self { log, state: Mutex::default(), claimed: watch::Sender::new(None) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn value(&self, at: &RequestPosition) -> Vec<u8> {
        let of = TopicPartition::new(at.topic.as_str(), at.partition);
        let mut reader = self.log.reader(vec![(of, at.offset)]).expect("a reader");
        let read = reader.read(ReadLimit { records: 1, ..ReadLimit::default() }).await.expect("read");
        read[0].record.value.clone().expect("a value").to_vec()
    }
}

impl State {
    fn build(&mut self, request: Request<BuildRequest>) -> Result<(), Refused> {
        match request.event {
            BuildRequest::BuildRequested(event) => {
                if event.build.command.is_empty() {
                    return Err((RefusalCode::Invalid, "build.command: it is empty".to_owned()));
                }
                if self.by_request.contains_key(&request.id) {
                    return Ok(());
                }
                let job = JobId { queue: event.queue, number: self.jobs.len() as u64 + 1 };
                self.by_request.insert(request.id, job.clone());
                self.jobs.insert(job.clone(), super::world::job_view(job, event.build));
                Ok(())
            }
            BuildRequest::CancelRequested(event) => {
                let job = self.jobs.get_mut(&event.job).ok_or_else(|| unknown(&event.job))?;
                if job.status.is_ended() {
                    return Err((RefusalCode::Conflict, format!("{} has ended", event.job)));
                }
                job.status = JobStatus::Canceled;
                Ok(())
            }
            BuildRequest::AttemptFinished(event) => {
                let job = self.jobs.get_mut(&event.job).ok_or_else(|| unknown(&event.job))?;
                if job.status != JobStatus::Running || job.attempt != event.attempt {
                    return Err((RefusalCode::Stale, "the attempt is over".to_owned()));
                }
                match event.outcome {
                    AttemptOutcome::AttemptSucceeded(done) => {
                        (job.status, job.artifact) = (JobStatus::Succeeded, Some(done.artifact));
                    }
                    AttemptOutcome::AttemptFailed(failed) => {
                        job.status = JobStatus::Failed;
                        job.failure = Some(JobFailure { reason: failed.reason, message: failed.message });
                    }
                }
                Ok(())
            }
        }
    }

    fn import(&mut self, request: Request<ArtifactRequest>) -> Result<(), Refused> {
        let ArtifactRequest::ImportRequested(ImportRequested { summary, origin, run }) = request.event else {
            return Err((RefusalCode::Invalid, "it is no import".to_owned()));
        };
        if !origin.url.contains(':') {
            return Err((RefusalCode::Invalid, "origin must be a URL".to_owned()));
        }
        let view = super::world::artifact(summary.artifact, false);
        self.artifacts.push(ArtifactView { summary, run, source: Source::Imported(origin), ..view });
        Ok(())
    }

    fn goal(&mut self, request: Request<GoalRequest>) -> Result<(), Refused> {
        let (service, artifact, plan) = match request.event {
            GoalRequest::DeployRequested(event) => (event.service, Some(event.artifact), event.plan),
            GoalRequest::RollbackRequested(event) => {
                (event.service, event.to, RolloutPlan { waves: Vec::new(), failure_budget_bp: 0 })
            }
            GoalRequest::PauseRequested(event) => return self.known(&event.service),
            GoalRequest::ResumeRequested(event) => return self.known(&event.service),
            GoalRequest::LiftHoldRequested(event) => return self.known(&event.service),
            other => return Err((RefusalCode::Invalid, format!("{other:?}"))),
        };
        let Some(artifact) = artifact else { return self.known(&service) };
        let pin_refusal = self.pin_refusal.clone();
        let view = self.services.entry(service.clone()).or_insert_with(|| ServiceView {
            service,
            version: GoalVersion::default(),
            revisions: Vec::new(),
            held: Vec::new(),
            regions: Vec::new(),
        });
        if view.revisions.iter().any(|revision| revision.deploy == request.id) {
            return Ok(());
        }
        let revision = RevisionView {
            revision: view.revisions.len() as u64 + 1,
            deploy: request.id,
            artifact,
            actor: request.actor,
            plan,
            status: if pin_refusal.is_some() { RolloutStatus::Refused } else { RolloutStatus::Rolling },
            wave: 0,
            requested_at: request.at,
            ended_at: None,
            reason: pin_refusal,
            rollback_of: None,
        };
        view.revisions.insert(0, revision);
        Ok(())
    }

    fn known(&self, service: &ServiceName) -> Result<(), Refused> {
        let unknown = || (RefusalCode::NotFound, format!("service {service} has no goal"));
        self.services.get(service).map(drop).ok_or_else(unknown)
    }
}

fn unknown(job: &JobId) -> Refused {
    (RefusalCode::NotFound, format!("there is no job {job}"))
}

fn page<T>(items: Vec<T>) -> Page<T> {
    Page { items, next: None }
}

#[async_trait]
impl ReadModel for Toy {
    fn queues(&self) -> Result<Vec<QueueView>, ReadError> {
        let panics = self.state().panics;
        assert!(!panics, "as the test wants it");
        Ok(Vec::new())
    }

    fn jobs(&self, query: &JobQuery) -> Result<Page<JobView>, ReadError> {
        if query.after.is_some() {
            return Err(ReadError::Invalid("after: it is of no page".to_owned()));
        }
        Ok(page(self.state().jobs.values().cloned().collect()))
    }

    fn job(&self, job: &JobId) -> Result<Option<JobView>, ReadError> {
        Ok(self.state().jobs.get(job).cloned())
    }

    fn job_of_request(&self, request: &RequestId) -> Result<Option<JobView>, ReadError> {
        let state = self.state();
        Ok(state.by_request.get(request).and_then(|job| state.jobs.get(job)).cloned())
    }

    /// It leads every partition of builds, and has processed nothing.
    async fn processing(&self) -> Vec<(RequestPartition, ProcessingView)> {
        let topic = topics::BUILD_REQUESTS;
        let mut all = Vec::new();
        for partition in 0..topic.partitions {
            let lag = self.log.end_offset(&TopicPartition::new(topic.name, partition)).await.unwrap_or_default();
            let (processor, role) = ("queue".to_owned(), "leading".to_owned());
            all.push((
                (topic.name, partition),
                ProcessingView { processor, role, owner: None, processed: 0, lag, error: None },
            ));
        }
        all
    }

    fn artifacts(&self, _: &ArtifactQuery) -> Result<Page<ArtifactView>, ReadError> {
        Ok(page(self.state().artifacts.clone()))
    }

    fn artifact(&self, artifact: &ArtifactId) -> Result<Option<ArtifactView>, ReadError> {
        Ok(self.state().artifacts.iter().find(|view| view.summary.artifact == *artifact).cloned())
    }

    fn services(&self) -> Result<Vec<ServiceView>, ReadError> {
        Ok(self.state().services.values().cloned().collect())
    }

    fn service(&self, service: &ServiceName) -> Result<Option<ServiceView>, ReadError> {
        Ok(self.state().services.get(service).cloned())
    }

    fn nodes(&self, _: &NodeQuery) -> Result<Page<NodeView>, ReadError> {
        Ok(page(Vec::new()))
    }

    async fn node(self: Arc<Self>, node: NodeId, query: NodeHistoryQuery) -> Result<Vec<NodeHistoryView>, ReadError> {
        let is_meant = |view: &&NodeHistoryView| {
            view.node.node == node && query.region.as_ref().is_none_or(|region| view.node.region == *region)
        };
        Ok(self.state().nodes.iter().filter(is_meant).cloned().collect())
    }

    async fn outcome(&self, at: &RequestPosition, _: Duration) -> Result<Outcome, ReadError> {
        if self.state().stuck {
            return Ok(Outcome::Pending);
        }
        let value = self.value(at).await;
        let (request, decided) = if at.topic == topics::BUILD_REQUESTS.name {
            let request: Request<BuildRequest> = codec::decode(&value).expect("a request");
            (request.id.clone(), self.state().build(request))
        } else if at.topic == topics::ARTIFACT_REQUESTS.name {
            let request: Request<ArtifactRequest> = codec::decode(&value).expect("a request");
            (request.id.clone(), self.state().import(request))
        } else {
            let request: Request<GoalRequest> = codec::decode(&value).expect("a request");
            (request.id.clone(), self.state().goal(request))
        };
        Ok(match decided {
            Ok(()) => Outcome::Processed,
            Err((code, reason)) => Outcome::Refused(Refusal { request, offset: at.offset, code, reason }),
        })
    }

    async fn claimed(&self, _: &QueueName, claim: &ClaimId, wait: Duration) -> Result<Option<ClaimedJob>, ReadError> {
        let mut claimed = self.claimed.subscribe();
        let mine = |job: &Option<ClaimedJob>| job.as_ref().is_some_and(|job| job.claim == *claim);
        let job = tokio::time::timeout(wait, claimed.wait_for(mine)).await;
        Ok(job.ok().and_then(|job| job.ok().and_then(|job| job.clone())))
    }

    async fn service_when(
        &self,
        service: &ServiceName,
        _: Duration,
        _: &(dyn for<'a> Fn(&'a ServiceView) -> bool + Send + Sync),
    ) -> Result<Option<ServiceView>, ReadError> {
        self.service(service)
    }
}

/// A time that is in no test's way.
pub(super) const LONG_AGO: Timestamp = Timestamp::from_millis(1_700_000_000_000);
