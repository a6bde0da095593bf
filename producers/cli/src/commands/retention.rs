//! `longshore retention`, `keep`, `let-go`

use std::time::Duration;

use longshore_schemas::http::{ArtifactView, CollectedView, KeepBody, RetentionView};

use super::{Context, change};
use crate::{
    args::{ArtifactArg, KeepArgs},
    error::Error,
    output,
};

/// Reading every root of the main bucket takes a while.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

pub(super) async fn plan(context: &Context) -> Result<(), Error> {
    let view: RetentionView = context.client.get(&["retention"]).timeout(PATIENCE).fetch().await?;
    context.show(&view, text)
}

fn text(view: &RetentionView) -> String {
    let now = output::now();
    let mut lines = Vec::new();
    let more = |shown: usize, total: u64| {
        if shown as u64 == total { String::new() } else { format!(", of which the oldest {shown} are shown") }
    };
    lines.push(format!("retired soon: {}{}", view.retired_total, more(view.retired.len(), view.retired_total)));
    let rows = view.retired.iter().map(|retiring| {
        let size = output::size(retiring.pack_bytes);
        vec![retiring.artifact.short(), retiring.name.to_string(), output::ago(retiring.built_at, now), size]
    });
    if !view.retired.is_empty() {
        lines.push(output::table(&["artifact", "name", "built", "packs"], rows.collect()));
    }
    let CollectedView { roots_deleted, packs_deleted, pack_bytes_deleted, packs_kept, pack_bytes_kept, .. } =
        view.collected;
    lines.push(format!(
        "deleted of the main bucket, once they have been retired for {}: {roots_deleted} artifacts, {packs_deleted} packs, {}; \
         {packs_kept} packs stay, {}",
        output::duration(Duration::from_secs(view.grace_seconds)),
        output::size(pack_bytes_deleted),
        output::size(pack_bytes_kept),
    ));
    lines.push(format!("kept: {}{}", view.kept_total, more(view.kept.len(), view.kept_total)));
    let rows = view.kept.iter().map(|kept| {
        let size = output::size(kept.pack_bytes);
        let built = output::ago(kept.built_at, now);
        vec![kept.artifact.short(), kept.name.to_string(), built, size, kept.because.clone()]
    });
    if !view.kept.is_empty() {
        lines.push(output::table(&["artifact", "name", "built", "packs", "because"], rows.collect()));
    }
    lines.join("\n")
}

pub(super) async fn keep(context: &Context, args: &KeepArgs) -> Result<(), Error> {
    let artifact = context.find_artifact(&args.artifact.artifact).await?.to_string();
    let body = KeepBody { reason: args.reason.clone() };
    let call = context.client.post(&["artifacts", &artifact, "keep"]).json(&body);
    let view: ArtifactView = change(call).await?;
    context.show(&view, |view| format!("artifact {} is kept until it is let go", view.summary.artifact.short()))
}

pub(super) async fn let_go(context: &Context, args: &ArtifactArg) -> Result<(), Error> {
    let artifact = context.find_artifact(&args.artifact).await?.to_string();
    let view: ArtifactView = change(context.client.delete(&["artifacts", &artifact, "keep"])).await?;
    context.show(&view, |view| format!("artifact {} is let go", view.summary.artifact.short()))
}
