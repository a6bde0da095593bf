//! A rollout until its end: a bar per region on a terminal, else a line for each change.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use longshore_schemas::{
    RegionName, RequestId, ServiceName,
    http::{RevisionView, RolloutStatus, ServiceView},
};

use super::Context;
use crate::{
    error::Error,
    output::{self, Format},
};

const PAUSE: Duration = Duration::from_millis(500);
/// So many failed looks in a row, and the server counts as gone.
const FAILURES_MAX: u32 = 20;

/// Watches the rollout of this deploy, or of the service's newest one.
pub(super) async fn watch(context: &Context, service: &ServiceName, deploy: Option<&RequestId>) -> Result<(), Error> {
    let mut display = Display::new();
    let mut failures = 0;
    let mut watched = deploy.cloned();
    loop {
        match context.service(service).await {
            Ok(view) => {
                failures = 0;
                let revision = match &watched {
                    Some(deploy) => view.revisions.iter().find(|revision| revision.deploy == *deploy),
                    None => view.revisions.first(),
                };
                let Some(revision) = revision else {
                    return Err(Error::Failed(format!("{service} has no rollout to watch")));
                };
                watched = Some(revision.deploy.clone());
                display.show(&view, revision);
                if let Some(result) = result(service, revision) {
                    display.end();
                    if context.format == Format::Json {
                        output::json(&view)?;
                    }
                    return result;
                }
            }
            Err(error) if error.is_transient() && failures < FAILURES_MAX => failures += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// None: it goes on. A paused rollout waits for a person, and so do we.
fn result(service: &ServiceName, revision: &RevisionView) -> Option<Result<(), Error>> {
    let reason = revision.reason.as_deref().unwrap_or("no reason was given");
    let failed = |text: String| Some(Err(Error::Failed(text)));
    match revision.status {
        RolloutStatus::Pending | RolloutStatus::Rolling | RolloutStatus::Paused => None,
        RolloutStatus::Completed => {
            output::message(&format!("{service}: revision {} completed", revision.revision));
            Some(Ok(()))
        }
        RolloutStatus::Refused => failed(format!("{service}: the deploy was refused: {reason}")),
        RolloutStatus::Halted => failed(format!(
            "{service}: revision {} halted in wave {}: {reason}\n`longshore rollback {service}` goes back, `longshore resume {service}` goes on",
            revision.revision,
            revision.wave + 1,
        )),
        RolloutStatus::Superseded => {
            failed(format!("{service}: a newer revision took the place of {}", revision.revision))
        }
    }
}

struct Display {
    /// None: stderr is no terminal.
    bars: Option<MultiProgress>,
    regions: BTreeMap<RegionName, ProgressBar>,
    last: String,
}

impl Display {
    fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, regions: BTreeMap::new(), last: String::new() }
    }

    fn show(&mut self, view: &ServiceView, revision: &RevisionView) {
        let line = headline(view, revision);
        match &self.bars {
            None => {
                let levels: Vec<_> = view.regions.iter().map(level).collect();
                let line = format!("{line}; {}", levels.join(", "));
                if line != self.last {
                    output::message(&line);
                    self.last = line;
                }
            }
            Some(bars) => {
                if line != self.last {
                    // A terminal that is gone needs no line.
                    let _ = bars.println(&line);
                    self.last = line;
                }
                for region in &view.regions {
                    let bar =
                        self.regions.entry(region.region.clone()).or_insert_with(|| bars.add(bar(&region.region)));
                    bar.set_length(region.level.eligible.into());
                    bar.set_position(region.level.converged.into());
                    bar.set_message(if region.level.failed > 0 {
                        format!("{} failed", region.level.failed)
                    } else {
                        String::new()
                    });
                }
            }
        }
    }

    /// Leaves the bars as they are.
    fn end(&self) {
        self.regions.values().for_each(ProgressBar::abandon);
    }
}

fn headline(view: &ServiceView, revision: &RevisionView) -> String {
    let status = output::word(&revision.status);
    let wave = format!("wave {} of {}", revision.wave + 1, revision.plan.waves.len());
    format!("{} {} revision {}: {status}, {wave}", view.service, revision.artifact.short(), revision.revision)
}

fn level(region: &longshore_schemas::http::RegionConvergence) -> String {
    let level = region.level;
    let failed = if level.failed > 0 { format!(" ({} failed)", level.failed) } else { String::new() };
    format!("{} {}/{}{failed}", region.region, level.converged, level.eligible)
}

fn bar(region: &RegionName) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len} {msg}").expect("a constant template");
    ProgressBar::new(0).with_style(style).with_prefix(region.to_string())
}
