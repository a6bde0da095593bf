//! What a service needs next: a pure function of its goal and of what is on disk.

use std::collections::BTreeSet;

use longshore_planted::{Bug, planted};
use longshore_schemas::{
    ArtifactId,
    events::{NodeStatus, RunSpec, Target},
};
use serde::{Deserialize, Serialize};

use crate::Wanted;

/// Releases of a service that are kept, the running one included.
pub const RELEASES_KEPT: usize = 3;

/// What a node remembers of a service, across restarts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceState {
    /// The release that `current` points to and that should run.
    pub current: Option<Release>,
    /// Releases that were healthy before, newest first; the first is what a failed release gives way to.
    pub earlier: Vec<Release>,
    /// The newest release that failed here, which is not tried again for the same revision.
    pub failed: Option<FailedRelease>,
    pub port: Option<u16>,
}

/// An artifact, and how it is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub revision: u64,
    pub artifact: ArtifactId,
    pub run: RunSpec,
    /// It was healthy once.
    pub healthy: bool,
}

impl Release {
    fn of(target: &Target) -> Self {
        Self { revision: target.revision, artifact: target.artifact, run: target.run.clone(), healthy: false }
    }

    /// The same bytes, run in the same way.
    fn is(&self, target: &Target) -> bool {
        self.artifact == target.artifact && self.run == target.run
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedRelease {
    pub revision: u64,
    pub artifact: ArtifactId,
    pub message: String,
}

/// The next step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// All is as the goal wants it: report this, keep the service running.
    Settled(NodeStatus),
    /// Fetch and assemble this release, then switch to it.
    Install(Release),
    /// The release is in place but was never healthy, as after a restart in the middle: start it and see.
    Prove(Release),
    /// Nothing of this service should run.
    Stop,
}

/// See the module.
pub fn next(wanted: &Wanted, state: &ServiceState) -> Step {
    let Some(target) = &wanted.target else {
        return if state.current.is_some() { Step::Stop } else { Step::Settled(NodeStatus::Stopped) };
    };
    let failed = state.failed.as_ref();
    let is_given_up = failed.is_some_and(|f| f.artifact == target.artifact && f.revision == target.revision);
    if is_given_up && !planted(Bug::RetryFailedRelease) {
        let back = state.current.as_ref().is_some_and(|current| current.healthy && !current.is(target));
        return Step::Settled(if back { NodeStatus::RolledBack } else { NodeStatus::Failed });
    }
    match &state.current {
        Some(current) if current.is(target) && current.healthy => Step::Settled(NodeStatus::Healthy),
        Some(current) if current.is(target) => Step::Prove(current.clone()),
        _ => Step::Install(Release::of(target)),
    }
}

impl ServiceState {
    /// `current` now points to this release; the one before is what to go back to if it was any good.
    pub fn switched(&mut self, release: Release) {
        let (artifact, run) = (release.artifact, release.run.clone());
        if let Some(before) = self.current.replace(release)
            && before.healthy
        {
            self.earlier.insert(0, before);
        }
        self.earlier.retain(|earlier| earlier.artifact != artifact || earlier.run != run);
        self.forget_surplus();
    }

    pub fn proved(&mut self) {
        if let Some(current) = &mut self.current {
            current.healthy = true;
        }
        self.failed = None;
    }

    /// The current release failed: it gives way to the one before, which is the new current, if there is one.
    pub fn gave_way(&mut self, message: &str) {
        if let Some(bad) = self.current.take() {
            let message = message.to_owned();
            self.failed = Some(FailedRelease { revision: bad.revision, artifact: bad.artifact, message });
        }
        if !self.earlier.is_empty() {
            self.current = Some(self.earlier.remove(0));
        }
    }

    /// The release was not taken at all: what is current stays.
    pub fn refused(&mut self, release: &Release, message: &str) {
        let message = message.to_owned();
        self.failed = Some(FailedRelease { revision: release.revision, artifact: release.artifact, message });
    }

    /// The release that was gone back to is no good either. It goes on being tried, for want of a better one.
    pub fn failed_again(&mut self, message: &str) {
        if let Some(current) = &mut self.current {
            current.healthy = false;
        }
        if let Some(failed) = &mut self.failed {
            failed.message = message.to_owned();
        }
    }

    pub fn stopped(&mut self) {
        if let Some(current) = self.current.take()
            && current.healthy
        {
            self.earlier.insert(0, current);
        }
        self.forget_surplus();
    }

    /// Artifacts that this service still needs on disk.
    pub fn kept(&self) -> impl Iterator<Item = ArtifactId> + '_ {
        self.current.iter().chain(&self.earlier).map(|release| release.artifact)
    }

    /// Revisions whose settings this service still needs.
    pub fn revisions(&self) -> BTreeSet<u64> {
        self.current.iter().chain(&self.earlier).map(|release| release.revision).collect()
    }

    fn forget_surplus(&mut self) {
        let running = usize::from(self.current.is_some());
        self.earlier.truncate(RELEASES_KEPT - running);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_schemas::events::{Cohort, GoalVersion};

    fn run(program: &str) -> RunSpec {
        RunSpec {
            command: vec![program.into()],
            environment: Default::default(),
            health: Default::default(),
            stop_signal: Default::default(),
            stop_seconds: 1,
            ..RunSpec::default()
        }
    }

    fn wanted(revision: u64, artifact: &str) -> Wanted {
        let artifact = ArtifactId::of(artifact.as_bytes());
        let target = Target { cohort: Cohort::everyone(), revision, artifact, run: run("x") };
        Wanted { version: GoalVersion { revision, step: 1 }, target: Some(target) }
    }

    fn nothing_wanted() -> Wanted {
        Wanted { version: GoalVersion { revision: 9, step: 1 }, target: None }
    }

    fn install(state: &mut ServiceState, wanted: &Wanted, healthy: bool) {
        let Step::Install(release) = next(wanted, state) else { panic!("{:?}", next(wanted, state)) };
        state.switched(release);
        if healthy { state.proved() } else { state.gave_way("it crashed") }
    }

    #[test]
    fn a_service_goes_from_release_to_release_and_back_from_a_bad_one() {
        let mut state = ServiceState::default();
        install(&mut state, &wanted(1, "one"), true);
        assert_eq!(next(&wanted(1, "one"), &state), Step::Settled(NodeStatus::Healthy));
        assert_eq!(
            next(&wanted(2, "one"), &state),
            Step::Settled(NodeStatus::Healthy),
            "the same bytes, newer revision"
        );
        install(&mut state, &wanted(3, "bad"), false);
        assert_eq!(next(&wanted(3, "bad"), &state), Step::Settled(NodeStatus::RolledBack), "not tried again");
        assert_eq!(state.current.as_ref().map(|r| r.artifact), Some(ArtifactId::of(b"one")));
        assert!(matches!(next(&wanted(4, "bad"), &state), Step::Install(_)), "a newer revision may try it");
        install(&mut state, &wanted(4, "two"), true);
        assert_eq!(state.failed, None);
    }

    #[test]
    fn the_first_release_that_fails_leaves_nothing_running() {
        let mut state = ServiceState::default();
        install(&mut state, &wanted(1, "bad"), false);
        assert_eq!(next(&wanted(1, "bad"), &state), Step::Settled(NodeStatus::Failed));
        assert_eq!(state.current, None);
    }

    #[test]
    fn a_release_that_is_refused_changes_nothing_that_runs() {
        let mut state = ServiceState::default();
        let refuse = |state: &mut ServiceState, wanted: &Wanted| {
            let Step::Install(release) = next(wanted, state) else { panic!("{:?}", next(wanted, state)) };
            state.refused(&release, "no such file");
        };
        refuse(&mut state, &wanted(1, "one"));
        assert_eq!(next(&wanted(1, "one"), &state), Step::Settled(NodeStatus::Failed), "there is nothing else");
        install(&mut state, &wanted(2, "one"), true);
        refuse(&mut state, &wanted(3, "two"));
        assert_eq!(next(&wanted(3, "two"), &state), Step::Settled(NodeStatus::RolledBack));
        assert_eq!(state.current.as_ref().map(|r| r.artifact), Some(ArtifactId::of(b"one")));
        assert!(matches!(next(&wanted(4, "two"), &state), Step::Install(_)));
    }

    #[test]
    fn a_release_before_it_that_fails_too_is_no_rollback() {
        let mut state = ServiceState::default();
        install(&mut state, &wanted(1, "one"), true);
        install(&mut state, &wanted(2, "bad"), false);
        state.failed_again("both crash");
        assert_eq!(next(&wanted(2, "bad"), &state), Step::Settled(NodeStatus::Failed));
        assert!(matches!(next(&wanted(3, "one"), &state), Step::Prove(_)), "a newer revision may prove it");
    }

    #[test]
    fn going_back_and_forth_keeps_an_artifact_once() {
        let mut state = ServiceState::default();
        for (revision, name) in (1..).zip(["a", "b", "a", "b", "a"]) {
            install(&mut state, &wanted(revision, name), true);
        }
        let kept: Vec<_> = state.kept().collect();
        assert_eq!(kept, ["a", "b"].map(|name| ArtifactId::of(name.as_bytes())));
    }

    #[test]
    fn a_restart_before_the_release_was_healthy_proves_it() {
        let mut state = ServiceState::default();
        let Step::Install(release) = next(&wanted(1, "one"), &state) else { panic!("installs") };
        state.switched(release.clone());
        assert_eq!(next(&wanted(1, "one"), &state), Step::Prove(release));
    }

    #[test]
    fn nothing_wanted_stops_and_a_changed_run_is_a_new_release() {
        let mut state = ServiceState::default();
        assert_eq!(next(&nothing_wanted(), &state), Step::Settled(NodeStatus::Stopped));
        install(&mut state, &wanted(1, "one"), true);
        assert_eq!(next(&nothing_wanted(), &state), Step::Stop);
        let mut other = wanted(2, "one");
        other.target.as_mut().expect("has one").run = run("y");
        assert!(matches!(next(&other, &state), Step::Install(_)));
        state.stopped();
        assert_eq!(next(&nothing_wanted(), &state), Step::Settled(NodeStatus::Stopped));
    }

    #[test]
    fn three_releases_are_kept() {
        let mut state = ServiceState::default();
        for (revision, name) in (1..).zip(["a", "b", "c", "d", "e"]) {
            install(&mut state, &wanted(revision, name), true);
        }
        let kept: Vec<_> = state.kept().collect();
        assert_eq!(kept, ["e", "d", "c"].map(|name| ArtifactId::of(name.as_bytes())));
    }
}
