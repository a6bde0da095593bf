//! `longshore artifacts`, `artifact`

use std::time::Duration;

use longshore_schemas::{
    Timestamp,
    events::ReplicaStatus,
    http::{ArtifactQuery, ArtifactView, Page, ReplicaView, Source},
};

use super::Context;
use crate::{
    args::{ArtifactArg, ArtifactsArgs},
    error::Error,
    output,
};

pub(super) async fn list(context: &Context, args: ArtifactsArgs) -> Result<(), Error> {
    let query = ArtifactQuery { name: args.name, limit: Some(args.limit), after: args.after };
    let page: Page<ArtifactView> = context.client.get(&["artifacts"]).query(&query).fetch().await?;
    context.show(&page, |page| table(&page.items, output::now()))?;
    output::more(page.next.as_ref());
    Ok(())
}

pub(super) async fn show(context: &Context, args: &ArtifactArg) -> Result<(), Error> {
    let artifact = context.find_artifact(&args.artifact).await?;
    let view = context.artifact(&artifact).await?;
    context.show(&view, |view| text(view, output::now()))
}

fn table(artifacts: &[ArtifactView], now: Timestamp) -> String {
    if artifacts.is_empty() {
        return "no artifacts; `longshore build` makes one".to_owned();
    }
    let row = |view: &ArtifactView| {
        let stored = view.replicas.iter().filter(|replica| replica.status == Some(ReplicaStatus::Stored)).count();
        vec![
            view.summary.artifact.short(),
            view.summary.name.to_string(),
            output::word(&view.status),
            format!("{stored} of {}", view.replicas.len()),
            output::size(view.summary.size_bytes),
            output::size(view.summary.new_pack_bytes),
            output::ago(view.built_at, now),
            made_by(&view.source),
        ]
    };
    let header = ["artifact", "name", "status", "regions", "size", "new", "built", "from"];
    output::table(&header, artifacts.iter().map(row).collect())
}

fn made_by(source: &Source) -> String {
    match source {
        Source::Built(built) => built.job.to_string(),
        Source::Imported(origin) => output::brief(&origin.url),
    }
}

fn text(view: &ArtifactView, now: Timestamp) -> String {
    let services: Vec<_> = view.pinned_by.iter().map(ToString::to_string).collect();
    let wanted = view.wanted_by.as_ref().map(|wanted| format!("by {} {}", wanted.by, wanted.reason).trim().to_owned());
    let wanted = wanted.unwrap_or_else(|| "-".to_owned());
    let summary = &view.summary;
    let lines = [
        ("artifact", summary.artifact.to_string()),
        ("name", summary.name.to_string()),
        ("status", output::word(&view.status)),
        (
            "size",
            format!(
                "{} in {} files, {} chunks, {} packs",
                output::size(summary.size_bytes),
                summary.files,
                summary.chunks,
                summary.packs
            ),
        ),
        ("new", output::size(summary.new_pack_bytes)),
        (
            "built",
            format!(
                "{} {}",
                output::ago(view.built_at, now),
                match &view.source {
                    Source::Built(built) => format!("by {} from {} {}", built.job, built.repository, built.commit),
                    Source::Imported(origin) =>
                        format!("elsewhere: {}, imported by {}", origin.url, origin.imported_by),
                }
            ),
        ),
        ("runs", output::command(&view.run.command)),
        ("kept by", if services.is_empty() { "-".to_owned() } else { services.join(", ") }),
        ("wanted", wanted),
        ("retired", view.retired_at.map_or_else(|| "-".to_owned(), |at| output::ago(at, now))),
    ];
    let lines: Vec<_> = lines.into_iter().map(|(name, value)| format!("{name:<9} {value}")).collect();
    let header = ["region", "status", "packs", "bytes", "copied", "rate", "expected", "reported", "failed", "error"];
    let replicas = output::table(&header, view.replicas.iter().map(|replica| replica_row(replica, now)).collect());
    format!("{}\n\n{replicas}", lines.join("\n"))
}

fn replica_row(replica: &ReplicaView, now: Timestamp) -> Vec<String> {
    let none = || "-".to_owned();
    let status = replica.status.as_ref().map_or_else(|| "waiting".to_owned(), output::word);
    vec![
        replica.region.to_string(),
        status,
        format!("{} of {}", replica.packs_done, replica.packs),
        format!("{} of {}", output::size(replica.bytes_done), output::size(replica.bytes)),
        output::size(replica.bytes_copied),
        replica.bytes_per_second.map_or_else(none, |rate| format!("{}/s", output::size(rate))),
        replica.expected_at.map_or_else(none, |at| match at.since(now) {
            Duration::ZERO => "any moment".to_owned(),
            wait => format!("in {}", output::duration(wait)),
        }),
        replica.reported_at.map_or_else(none, |time| output::ago(time, now)),
        if replica.failures == 0 { none() } else { format!("{}×", replica.failures) },
        replica.error.as_ref().or(replica.last_error.as_ref()).map_or_else(none, |error| output::brief(error)),
    ]
}
