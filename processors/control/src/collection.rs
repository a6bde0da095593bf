//! Collecting in the main bucket what no artifact needs any more, and saying beforehand what would be retired and collected, and why all
//! else is kept.
//!
//! Of all control nodes, the one that leads the first partition of replication does it, round after round. A leader that was replaced and
//! does not know yet deletes nothing that the other would keep: see `longshore_artifact::collect`.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc, time::Duration};

use async_trait::async_trait;
use longshore_collector::{Announced, Collector, Known, Publisher, Settings, Standing};
use longshore_log::{Log, TopicPartition, clock, end_of_records};
use longshore_processor::{Order, Range, StateError};
use longshore_replication::{
    Kept, Retention,
    tables::{ARTIFACTS, Artifact, LIVE, Status},
};
use longshore_runtime::{Handle, Role, Wire, chain};
use longshore_s3::Bucket;
use longshore_schemas::{
    ArtifactId, Timestamp,
    events::Event,
    http::{JobStatus, KeptView, RETENTION_ITEMS_MAX, RetentionView, RetiringView},
    read::ReadError,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::read::{Projections, job};

/// How long a round waits for the projections to come up to date.
const CATCH_UP: Duration = Duration::from_secs(60);
/// What collectors that are gone leave is in the way of publishers, and is looked for this often.
const TIDY_EVERY: Duration = Duration::from_secs(2 * 60);
/// Artifacts that are named as having no root.
const WITHOUT_MAX: usize = 100;

/// What is collected, and when.
#[derive(Clone)]
pub struct Collection {
    pub bucket: Bucket,
    pub settings: Settings,
    /// Between the beginnings of two rounds.
    pub every: Duration,
    /// Whose main bucket it must be.
    pub installation: String,
}

/// Looks at the projections for a collector.
pub(crate) struct Projected {
    projections: Arc<Projections>,
    announced_lasts: Duration,
    /// What is due as well, as if it had been retired long ago.
    due: Option<(Retention, Timestamp)>,
}

impl Projected {
    fn look(&self, artifact: &ArtifactId) -> Result<Standing, StateError> {
        let held = self.projections.replication.store_of(&artifact.to_string()).hold()?;
        let state = held.view();
        let Some(row) = ARTIFACTS.get(&state, artifact)? else { return Ok(Standing::Unknown) };
        Ok(match (row.status, &self.due) {
            (Status::Retired, Some(_)) => Standing::RetiredSince(Timestamp::default()),
            (Status::Retired, None) => Standing::RetiredSince(row.retired_at.unwrap_or_default()),
            (_, Some((retention, now))) if retention.keeps(&state, *artifact, &row, *now)?.is_none() => {
                Standing::RetiredSince(Timestamp::default())
            }
            _ => Standing::Live,
        })
    }
}

#[async_trait]
impl Known for Projected {
    async fn catch_up(&self) -> Result<(), String> {
        let Projections { log, queue, replication, .. } = &*self.projections;
        caught_up(&**log, queue).await?;
        caught_up(&**log, replication).await
    }

    fn standing(&self, artifact: &ArtifactId) -> Standing {
        self.look(artifact).unwrap_or_else(|error| {
            tracing::warn!(%artifact, %error, "an artifact cannot be looked up, and is kept");
            Standing::Live
        })
    }

    fn without_roots(
        &self,
        after: Option<&ArtifactId>,
        to: Option<&ArtifactId>,
        roots: &BTreeSet<ArtifactId>,
    ) -> Result<Vec<ArtifactId>, String> {
        let range = after.map_or(Range::all(), |after| Range::all().from(after));
        let mut without = Vec::new();
        for store in self.projections.replication.stores() {
            let held = store.hold().map_err(|error| error.to_string())?;
            let scanned = ARTIFACTS.scan(&held.view(), &range, Order::Ascending, |id, row| {
                if to.is_some_and(|to| id > *to) {
                    return ControlFlow::Break(());
                }
                if row.status != Status::Retired && Some(&id) != after && !roots.contains(&id) {
                    without.push(id);
                }
                if without.len() >= WITHOUT_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            scanned.map_err(|error| error.to_string())?;
            if without.len() >= WITHOUT_MAX {
                break;
            }
        }
        Ok(without)
    }

    fn is_settled(&self, announced: &Announced, _: bool) -> bool {
        match Publisher::parse(announced.by()) {
            Some(Publisher::Attempt { job: id, attempt }) => match job(&self.projections.queue, &id) {
                Ok(Some(view)) => view.status != JobStatus::Running || view.attempt != attempt,
                Ok(None) => true,
                Err(_) => false,
            },
            // Where it is live it is known; and whoever announced it has given up long ago.
            Some(Publisher::Import { begun }) => {
                self.standing(&announced.artifact) == Standing::Live
                    || clock::now().since(begun) >= self.announced_lasts
            }
            None => true,
        }
    }
}

/// Waits until what is in the log now is processed and applied here.
async fn caught_up<P: Wire>(log: &dyn Log, handle: &Handle<P>) -> Result<(), String> {
    let waiting = async {
        let applied = (0..).map_while(|partition| handle.applied(partition));
        let mut places: Vec<_> =
            (0..).zip(applied).map(|(n, applied)| (TopicPartition::new(P::Request::TOPIC.name, n), applied)).collect();
        let from = places.iter().map(|(of, applied)| (of.clone(), applied.borrow().request_offset)).collect();
        let ends = end_of_records(log, from).await.map_err(|error| error.to_string())?;
        for (of, applied) in &mut places {
            let end = ends.get(of).copied().unwrap_or_default();
            let reached = applied.wait_for(|applied| applied.request_offset >= end).await;
            reached.map(drop).map_err(|_| format!("{} has stopped", P::NAME))?;
        }
        Ok(())
    };
    let slow = |_| format!("requests to {} have waited for {} s", P::NAME, CATCH_UP.as_secs());
    tokio::time::timeout(CATCH_UP, waiting).await.map_err(slow)?
}

/// Round after round, as long as this node leads.
pub(crate) async fn run(projections: Arc<Projections>, collection: Collection, shutdown: CancellationToken) {
    let Collection { bucket, settings, every, installation } = collection;
    let collector = Collector::new(bucket, settings, clock::now).of(installation);
    let leads = || projections.replication.statuses().first().is_some_and(|status| status.role == Role::Leading);
    let mut next = Instant::now() + every;
    while shutdown.run_until_cancelled(tokio::time::sleep(every.min(TIDY_EVERY))).await.is_some() {
        if !leads() {
            continue;
        }
        if let Err(error) = collector.tidy().await {
            tracing::warn!(error = chain(&error), "what others have condemned cannot be looked at");
        }
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + every;
        let known =
            Projected { projections: projections.clone(), announced_lasts: settings.announced_lasts, due: None };
        match shutdown.run_until_cancelled(collector.round(&known)).await {
            Some(Err(error)) => {
                tracing::warn!(error = chain(&error), "what nothing needs could not be collected; trying again later");
            }
            Some(Ok(_)) => {}
            None => return,
        }
    }
}

/// What would be retired and collected if it were done now.
pub(crate) async fn plan(
    projections: Arc<Projections>,
    retention: &Retention,
    collection: &Collection,
    now: Timestamp,
) -> Result<RetentionView, ReadError> {
    let mut view = RetentionView { grace_seconds: collection.settings.grace.as_secs(), ..RetentionView::default() };
    for store in projections.replication.stores() {
        let held = store.hold().map_err(unreadable)?;
        let state = held.view();
        let mut failed = None;
        LIVE.scan(&state, &Range::all(), Order::Ascending, |(_, id), ()| {
            let looked = ARTIFACTS.expect(&state, &id).and_then(|row| {
                let keeps = retention.keeps(&state, id, &row, now)?;
                Ok((row, keeps))
            });
            match looked {
                Ok((row, keeps)) => add(&mut view, id, row, keeps),
                Err(error) => failed = Some(error),
            }
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .map_err(unreadable)?;
        if let Some(error) = failed {
            return Err(unreadable(error));
        }
    }
    let known = Projected {
        projections,
        announced_lasts: collection.settings.announced_lasts,
        due: Some((retention.clone(), now)),
    };
    let collector = Collector::new(collection.bucket.clone(), collection.settings, clock::now);
    let report = collector.dry_run(&known).await.map_err(|error| ReadError::Unavailable(chain(&error)))?;
    view.collected = report;
    Ok(view)
}

fn add(view: &mut RetentionView, id: ArtifactId, row: Artifact, keeps: Option<Kept>) {
    let (name, built_at, pack_bytes) = (row.summary.name, row.built_at, row.summary.pack_bytes);
    match keeps {
        None => {
            view.retired_total += 1;
            if view.retired.len() < RETENTION_ITEMS_MAX {
                view.retired.push(RetiringView { artifact: id, name, built_at, pack_bytes });
            }
        }
        Some(kept) => {
            view.kept_total += 1;
            if view.kept.len() < RETENTION_ITEMS_MAX {
                view.kept.push(KeptView { artifact: id, name, built_at, pack_bytes, because: because(&kept) });
            }
        }
    }
}

fn because(kept: &Kept) -> String {
    match kept {
        Kept::Pinned(service) => format!("service {service} needs it"),
        Kept::Wanted { by, reason } if reason.is_empty() => format!("{by} wants it kept"),
        Kept::Wanted { by, reason } => format!("{by} wants it kept: {reason}"),
        Kept::Newest(name) => format!("it is among the newest of {name}"),
        Kept::Young { until } => format!("it is young until {until}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn unreadable(error: StateError) -> ReadError {
    ReadError::Unavailable(error.to_string())
}
