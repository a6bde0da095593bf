//! The steps of a switch from one release to the next, as data: which hooks are run when, and what a failure of each step means.
//!
//! ```text
//!  before_fetch ▸ fetch ▸ │ before_stop ▸ stop ▸ after_stop │ ▸ switch ▸ │ before_start ▸ start ▸ health ▸ after_start ▸ validate
//!     [`ARRIVAL`]         │    [`stopping`], of the old     │            │        [`starting`], of the new
//! ```
//!
//! A hook that was interrupted, because the agent was killed, is run again from its beginning: hooks must bear that.

use longshore_schemas::events::{Hook, Hooks};

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookName {
    BeforeFetch,
    BeforeStop,
    AfterStop,
    BeforeStart,
    AfterStart,
    Validate,
}

impl HookName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BeforeFetch => "before_fetch",
            Self::BeforeStop => "before_stop",
            Self::AfterStop => "after_stop",
            Self::BeforeStart => "before_start",
            Self::AfterStart => "after_start",
            Self::Validate => "validate",
        }
    }

    /// What a release wants run there.
    pub fn of(self, hooks: &Hooks) -> Option<&Hook> {
        match self {
            Self::BeforeFetch => hooks.before_fetch.as_ref(),
            Self::BeforeStop => hooks.before_stop.as_ref(),
            Self::AfterStop => hooks.after_stop.as_ref(),
            Self::BeforeStart => hooks.before_start.as_ref(),
            Self::AfterStart => hooks.after_start.as_ref(),
            Self::Validate => hooks.validate.as_ref(),
        }
    }

    pub fn on_failure(self) -> OnFailure {
        match self {
            Self::BeforeFetch => OnFailure::Refuse,
            Self::BeforeStop | Self::AfterStop => OnFailure::GoOn,
            Self::BeforeStart | Self::AfterStart | Self::Validate => OnFailure::GoBack,
        }
    }
}

/// What a hook that fails, or does not end in time, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The release is not taken; what runs goes on running, untouched.
    Refuse,
    /// It is reported, and the stop goes on: a drain that fails must not keep a release for ever.
    GoOn,
    /// The release has failed; the one before is started again.
    GoBack,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Hook(HookName),
    /// The stop signal, and in the end nothing is left of the service.
    Stop,
    Start,
    /// Wait until it is healthy.
    Health,
}

/// What runs of the release that is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    Runs,
    /// A stop was begun and interrupted after its process had ended: `after_stop` may not have been run.
    Halfway,
    /// Nothing, and nothing is owed.
    Gone,
}

/// What stops a release, by its own hooks.
pub fn stopping(old: Old, hooks: &Hooks) -> Vec<Act> {
    let (before, after) = (Act::Hook(HookName::BeforeStop), Act::Hook(HookName::AfterStop));
    let acts = match old {
        Old::Runs => vec![before, Act::Stop, after],
        Old::Halfway => vec![Act::Stop, after],
        Old::Gone => vec![Act::Stop],
    };
    wanted(acts, hooks)
}

/// Why a release is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It must prove itself, as a new one or as the one that is gone back to.
    Prove,
    /// It runs already, and must prove itself.
    ProveRunning,
    /// It was healthy, and its shim is gone, as after a reboot. How it does then is watched, and no reason to go back.
    Resume,
    /// It was resumed, and its `after_start` has not ended yet.
    Resumed,
}

/// What starts a release, by its own hooks.
pub fn starting(start: Start, hooks: &Hooks) -> Vec<Act> {
    let hook = Act::Hook;
    let begin = [hook(HookName::BeforeStart), Act::Start];
    let register = [Act::Health, hook(HookName::AfterStart)];
    let acts = match start {
        Start::Prove => [&begin[..], &register[..], &[hook(HookName::Validate)]].concat(),
        Start::ProveRunning => [&register[..], &[hook(HookName::Validate)]].concat(),
        Start::Resume if hooks.after_start.is_none() => begin.to_vec(),
        Start::Resume => [begin, register].concat(),
        Start::Resumed => register.to_vec(),
    };
    wanted(acts, hooks)
}

/// Without the hooks that the release does not have.
fn wanted(acts: Vec<Act>, hooks: &Hooks) -> Vec<Act> {
    let is_wanted = |act: &Act| match act {
        Act::Hook(name) => name.of(hooks).is_some(),
        _ => true,
    };
    acts.into_iter().filter(is_wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Hooks {
        let hook = || Some(Hook { command: vec!["./hook".into()], timeout_seconds: 1 });
        Hooks {
            before_fetch: hook(),
            before_stop: hook(),
            after_stop: hook(),
            before_start: hook(),
            after_start: hook(),
            validate: hook(),
        }
    }

    fn words(acts: &[Act]) -> String {
        let word = |act: &Act| match act {
            Act::Hook(name) => name.as_str().to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        acts.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_stops_a_release() {
        let table = [
            (Old::Runs, "before_stop stop after_stop", "stop"),
            (Old::Halfway, "stop after_stop", "stop"),
            (Old::Gone, "stop", "stop"),
        ];
        for (old, with, without) in table {
            assert_eq!(words(&stopping(old, &all())), with, "{old:?}");
            assert_eq!(words(&stopping(old, &Hooks::default())), without, "{old:?}");
        }
    }

    #[test]
    fn what_starts_a_release() {
        let no_after_start = Hooks { after_start: None, ..all() };
        let table = [
            (Start::Prove, all(), "before_start start health after_start validate"),
            (Start::Prove, Hooks::default(), "start health"),
            (Start::ProveRunning, all(), "health after_start validate"),
            (Start::Resume, all(), "before_start start health after_start"),
            (Start::Resume, no_after_start, "before_start start"),
            (Start::Resume, Hooks::default(), "start"),
            (Start::Resumed, all(), "health after_start"),
        ];
        for (start, hooks, expected) in table {
            assert_eq!(words(&starting(start, &hooks)), expected, "{start:?} {hooks:?}");
        }
    }

    #[test]
    fn what_a_failure_means() {
        let table = [
            (HookName::BeforeFetch, OnFailure::Refuse),
            (HookName::BeforeStop, OnFailure::GoOn),
            (HookName::AfterStop, OnFailure::GoOn),
            (HookName::BeforeStart, OnFailure::GoBack),
            (HookName::AfterStart, OnFailure::GoBack),
            (HookName::Validate, OnFailure::GoBack),
        ];
        for (hook, expected) in table {
            assert_eq!(hook.on_failure(), expected, "{hook:?}");
        }
    }
}
