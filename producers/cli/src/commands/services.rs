//! `longshore deploy`, `status`, `rollback`, `pause`, `resume`, `lift-hold`

use std::{path::Path, time::Duration};

use longshore_schemas::{
    ArtifactId, RegionName, ServiceName, Timestamp,
    events::{RolloutPlan, Wave},
    http::{DeployBody, Page, RevisionView, RollbackBody, ServiceView},
};

use super::{Context, change, rollout};
use crate::{
    args::{DeployArgs, HoldArgs, RollbackArgs, ServiceArg, StatusArgs, waves},
    error::Error,
    output,
};

/// Between two tries of a deploy that waits for its artifact.
const WAIT_PAUSE: Duration = Duration::from_secs(1);
/// Revisions that are listed.
const REVISIONS_SHOWN: usize = 5;

pub(super) async fn deploy(context: &Context, args: &DeployArgs) -> Result<(), Error> {
    let plan = plan(context, args).await?;
    let artifact = context.find_artifact(&args.artifact.artifact).await?;
    let body = DeployBody { artifact, plan };
    let mut told = false;
    loop {
        let call = context.client.post(&["services", args.service.as_str(), "deploys"]);
        match change::<ServiceView>(call.json(&body)).await {
            Ok(view) => return started(context, &view, args.watch).await,
            Err(error) if args.wait && error.is_problem("artifact-not-deployable") => {
                if !told {
                    output::message(&format!("waiting until the regions have {}", artifact.short()));
                    told = true;
                }
                tokio::time::sleep(WAIT_PAUSE).await;
            }
            Err(error) => return Err(held(context, &args.service, artifact).await.unwrap_or(error)),
        }
    }
}

/// The refusal of an artifact that is held, in the words of the command line.
async fn held(context: &Context, service: &ServiceName, artifact: ArtifactId) -> Option<Error> {
    let view = context.service(service).await.ok()?;
    view.held.contains(&artifact).then(|| {
        let short = artifact.short();
        Error::Refused(format!(
            "{service} was rolled back from {short}, which is held since; `longshore lift-hold {service} {short}` lets it be deployed again"
        ))
    })
}

async fn plan(context: &Context, args: &DeployArgs) -> Result<Option<RolloutPlan>, Error> {
    if let Some(path) = &args.plan {
        return read_plan(path).map(Some);
    }
    if args.waves.is_none() && args.budget.is_none() && args.bake.is_none() {
        return Ok(None);
    }
    let bake_seconds = args.bake.unwrap_or(0);
    let waves = match &args.waves {
        Some(text) => waves(text, bake_seconds).map_err(Error::Usage)?,
        None => {
            let regions: Page<RegionName> = context.client.get(&["regions"]).fetch().await?;
            vec![Wave { regions: regions.items, zones: Vec::new(), fraction_bp: 10_000, bake_seconds }]
        }
    };
    Ok(Some(RolloutPlan { waves, failure_budget_bp: args.budget.unwrap_or(0) }))
}

fn read_plan(path: &Path) -> Result<RolloutPlan, Error> {
    let text = std::fs::read(path).map_err(|error| Error::Usage(format!("{path:?} cannot be read: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Usage(format!("{path:?} is no plan, {{\"waves\": […], …}}: {error}")))
}

/// A rollout was asked for: shows it, until its end if that is wanted.
async fn started(context: &Context, view: &ServiceView, watch: bool) -> Result<(), Error> {
    match view.revisions.first() {
        Some(revision) if watch => rollout::watch(context, &view.service, Some(&revision.deploy)).await,
        Some(_) => {
            context.show(view, |view| text(view, output::now()))?;
            output::message(&format!("`longshore status {} --watch` shows it until its end", view.service));
            Ok(())
        }
        None => show(context, view),
    }
}

fn show(context: &Context, view: &ServiceView) -> Result<(), Error> {
    context.show(view, |view| text(view, output::now()))
}

pub(super) async fn status(context: &Context, args: &StatusArgs) -> Result<(), Error> {
    match &args.service {
        Some(service) if args.watch => rollout::watch(context, service, None).await,
        Some(service) => show(context, &context.service(service).await?),
        None => {
            let page: Page<ServiceView> = context.client.get(&["services"]).fetch().await?;
            context.show(&page, |page| table(&page.items, output::now()))
        }
    }
}

impl Context {
    pub(super) async fn service(&self, service: &ServiceName) -> Result<ServiceView, longshore_worker::client::Error> {
        self.client.get(&["services", service.as_str()]).fetch().await
    }
}

pub(super) async fn rollback(context: &Context, args: &RollbackArgs) -> Result<(), Error> {
    let to = match &args.to {
        Some(artifact) => Some(context.find_artifact(artifact).await?),
        None => None,
    };
    let call = context.client.post(&["services", args.service.as_str(), "rollbacks"]);
    let view = change::<ServiceView>(call.json(&RollbackBody { to })).await?;
    started(context, &view, args.watch).await
}

pub(super) async fn pause(context: &Context, args: &ServiceArg, action: &str) -> Result<(), Error> {
    let view = change::<ServiceView>(context.client.post(&["services", args.service.as_str(), action])).await?;
    show(context, &view)
}

pub(super) async fn lift_hold(context: &Context, args: &HoldArgs) -> Result<(), Error> {
    let artifact = context.find_artifact(&args.artifact.artifact).await?.to_string();
    let path = ["services", args.service.as_str(), "holds", &artifact];
    let view = change::<ServiceView>(context.client.delete(&path)).await?;
    show(context, &view)
}

fn table(services: &[ServiceView], now: Timestamp) -> String {
    if services.is_empty() {
        return "no services; `longshore deploy` makes one".to_owned();
    }
    let row = |view: &ServiceView| {
        let newest = view.revisions.first();
        let level = total(view);
        vec![
            view.service.to_string(),
            view.version.to_string(),
            newest.map_or_else(|| "-".to_owned(), |revision| output::word(&revision.status)),
            newest.map_or_else(|| "-".to_owned(), |revision| revision.artifact.short()),
            format!("{} of {}", level.converged, level.eligible),
            level.failed.to_string(),
            newest.map_or_else(|| "-".to_owned(), |revision| output::ago(revision.requested_at, now)),
        ]
    };
    let header = ["service", "version", "status", "artifact", "converged", "failed", "deployed"];
    output::table(&header, services.iter().map(row).collect())
}

fn total(view: &ServiceView) -> longshore_schemas::events::Convergence {
    let mut total = longshore_schemas::events::Convergence::default();
    view.regions.iter().for_each(|region| total += region.level);
    total
}

pub(super) fn text(view: &ServiceView, now: Timestamp) -> String {
    let mut parts = vec![format!("{} at version {}", view.service, view.version)];
    parts.extend(view.revisions.first().and_then(|revision| rollout::situation(&view.service, revision)));
    for artifact in &view.held {
        let command = format!("longshore lift-hold {} {}", view.service, artifact.short());
        parts.push(format!("held: {} was rolled back from; `{command}` lets it be deployed again", artifact.short()));
    }
    let region = |region: &longshore_schemas::http::RegionConvergence| {
        let level = region.level;
        vec![region.region.to_string(), format!("{} of {}", level.converged, level.eligible), level.failed.to_string()]
    };
    if view.regions.is_empty() {
        parts.push("no region has reported yet".to_owned());
    } else {
        parts.push(output::table(&["region", "converged", "failed"], view.regions.iter().map(region).collect()));
    }
    let revisions = view.revisions.iter().take(REVISIONS_SHOWN).map(|revision| revision_row(revision, now)).collect();
    parts.push(output::table(&["revision", "status", "wave", "artifact", "by", "asked", "reason"], revisions));
    parts.join("\n\n")
}

fn revision_row(revision: &RevisionView, now: Timestamp) -> Vec<String> {
    let back = revision.rollback_of.map(|from| format!("back from {from}"));
    let reason = revision.reason.as_deref().map(output::brief).or(back);
    vec![
        if revision.revision == 0 { "-".to_owned() } else { revision.revision.to_string() },
        output::word(&revision.status),
        format!("{} of {}", revision.wave + 1, revision.plan.waves.len()),
        revision.artifact.short(),
        revision.actor.clone(),
        output::ago(revision.requested_at, now),
        reason.unwrap_or_else(|| "-".to_owned()),
    ]
}
