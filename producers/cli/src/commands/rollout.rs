//! A rollout until its end: a bar per region on a terminal, else a line for each change.

use std::{collections::BTreeMap, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use longshore_schemas::{
    RegionName, RequestId, ServiceName,
    events::Wave,
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
    let mut is_paused = false;
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
                if revision.status == RolloutStatus::Paused && !is_paused {
                    display.say(&situation(service, revision).unwrap_or_default());
                }
                is_paused = revision.status == RolloutStatus::Paused;
                if let Some(result) = result(&view, revision) {
                    display.end(&view);
                    if context.format == Format::Json {
                        output::json(&view)?;
                    }
                    return result.map(|text| output::message(&text));
                }
            }
            Err(error) if error.is_transient() && failures < FAILURES_MAX => failures += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// None: it goes on. A paused rollout waits for a person, and so do we.
fn result(view: &ServiceView, revision: &RevisionView) -> Option<Result<String, Error>> {
    let service = &view.service;
    let reason = revision.reason.as_deref().unwrap_or("no reason was given");
    let failed = |text: String| Some(Err(Error::Failed(text)));
    match revision.status {
        RolloutStatus::Pending | RolloutStatus::Rolling | RolloutStatus::Paused => None,
        RolloutStatus::Completed => {
            let converged: u32 = view.regions.iter().map(|region| region.level.converged).sum();
            let nodes = match converged {
                // A plan is met by the nodes that are here, be they none.
                0 => ", and no node is here to run it: `longshore nodes` shows which are lost".to_owned(),
                1 => " on 1 node".to_owned(),
                nodes => format!(" on {nodes} nodes"),
            };
            Some(Ok(format!("{service}: revision {} completed{nodes}", revision.revision)))
        }
        RolloutStatus::Refused => failed(format!("{service}: the deploy was refused: {reason}")),
        RolloutStatus::Halted => failed(situation(service, revision).unwrap_or_default()),
        RolloutStatus::Superseded => {
            failed(format!("{service}: a newer revision took the place of {}", revision.revision))
        }
    }
}

/// What a revision that has not ended does, and what it waits for.
pub(super) fn situation(service: &ServiceName, revision: &RevisionView) -> Option<String> {
    let place = format!("{service}: revision {}", revision.revision);
    let wave = format!("in wave {} of {} ({})", revision.wave + 1, revision.plan.waves.len(), waves(revision));
    let choice = format!("`longshore rollback {service}` goes back, `longshore resume {service}` goes on");
    match revision.status {
        RolloutStatus::Paused => Some(format!("{place} is paused {wave}\n{choice}")),
        RolloutStatus::Halted => {
            let reason = revision.reason.as_deref().unwrap_or("no reason was given");
            let nodes = format!("`longshore nodes --service {service}` shows each node");
            Some(format!("{place} halted {wave}: {reason}\n{nodes}; {choice}"))
        }
        RolloutStatus::Rolling => Some(format!("{place} rolls {wave}{}", conditions(revision))),
        _ => None,
    }
}

/// What a wave has to meet, where the plan asks for more than health.
fn conditions(revision: &RevisionView) -> String {
    let bake_seconds = revision.plan.waves.get(revision.wave as usize).map_or(0, |wave| wave.bake_seconds);
    let bake = match bake_seconds {
        0 => String::new(),
        seconds => {
            let time = output::duration(Duration::from_secs(seconds.into()));
            format!("; once converged, it must stay so for {time}")
        }
    };
    let budget = match revision.plan.failure_budget_bp {
        0 => String::new(),
        share => format!("; {} % of its nodes may fail", f64::from(share) / 100.0),
    };
    bake + &budget
}

/// `eu, then us+ap`
fn waves(revision: &RevisionView) -> String {
    let wave = |wave: &Wave| wave.regions.iter().map(RegionName::as_str).collect::<Vec<_>>().join("+");
    revision.plan.waves.iter().map(wave).collect::<Vec<_>>().join(", then ")
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
                let line = format!("{line}; {}", levels(view));
                if line != self.last {
                    output::message(&line);
                    self.last = line;
                }
            }
            Some(_) => {
                if line != self.last {
                    self.say(&line);
                    self.last = line;
                }
                for region in &view.regions {
                    let Some(bars) = &self.bars else { continue };
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

    fn say(&self, text: &str) {
        match &self.bars {
            // A terminal that is gone needs no line.
            Some(bars) => drop(bars.println(text)),
            None => output::message(text),
        }
    }

    /// Bars become a line: what is written next would land among them.
    fn end(&self, view: &ServiceView) {
        if self.bars.is_some() {
            self.regions.values().for_each(ProgressBar::finish_and_clear);
            output::message(&levels(view));
        }
    }
}

fn headline(view: &ServiceView, revision: &RevisionView) -> String {
    let status = output::word(&revision.status);
    let wave = format!("wave {} of {}", revision.wave + 1, revision.plan.waves.len());
    format!("{} {} revision {}: {status}, {wave}", view.service, revision.artifact.short(), revision.revision)
}

fn levels(view: &ServiceView) -> String {
    if view.regions.is_empty() {
        return "no region has reported yet".to_owned();
    }
    view.regions.iter().map(level).collect::<Vec<_>>().join(", ")
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
