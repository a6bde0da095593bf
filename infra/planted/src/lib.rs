//! Bugs that are planted on purpose, so that the simulator can prove that it would find them.
//!
//! Where the real bug would be, the real code asks [`planted`]. Without the feature `planted-bugs` that is the constant
//! `false` and costs nothing; with it, one bug can be planted per thread. Only the simulator's own build has the feature.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $bug:ident = $name:literal),+ $(,)?) => {
        /// See each for what it breaks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug { $($(#[doc = $doc])+ $bug),+ }

        impl Bug {
            pub const ALL: &'static [Self] = &[$(Self::$bug),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$bug => $name),+ }
            }
        }
    };
}

bugs! {
    /// The queue takes the word of any worker on any attempt of a job that runs.
    SkipAttemptCheck = "skip-attempt-check",
    /// The queue gives jobs to claims that have expired.
    ForgetClaimExpiry = "forget-claim-expiry",
    /// A requeued job waits behind those that came later.
    RequeueAtTail = "requeue-at-tail",
    /// The mark below which no job waits stays where it is when an older job comes back.
    KeepHeadAtRequeue = "keep-head-at-requeue",
    /// A job that has succeeded succeeds again if its worker says so twice.
    PublishTwice = "publish-twice",
    /// A beat does not put off the time at which a worker counts as lost.
    IgnoreBeats = "ignore-beats",
    /// A claim that was given a job gets another one when it is repeated.
    ForgetSpentClaims = "forget-spent-claims",
    /// A leader applies what it has decided before the log has taken it.
    ApplyBeforeCommit = "apply-before-commit",
    /// Deadlines are decided although beats that came before them wait in the log.
    WakeBeforeDraining = "wake-before-draining",
    /// After an ambiguous commit the leader goes on as if nothing had been written.
    GoOnAfterAmbiguousCommit = "go-on-after-ambiguous-commit",
    /// A new leader reads the end of the facts before it fences its predecessor.
    ReadEndBeforeFencing = "read-end-before-fencing",
    /// A new leader leads before it has applied every fact.
    LeadBeforeReplayed = "lead-before-replayed",
    /// A leader that retention overtakes goes on where the log does.
    PassOverLosses = "pass-over-losses",
    /// Requests are believed whoever sent them.
    AcceptUnsigned = "accept-unsigned",
    /// Which requests were processed is not remembered.
    ForgetSeen = "forget-seen",
    /// The time of facts follows a clock that goes back.
    LetTimeGoBack = "let-time-go-back",
    /// A state says that it is further than it is.
    AppliedAhead = "applied-ahead",
    /// Replication is complete when the first region has the artifact.
    CompleteAtFirstReplica = "complete-at-first-replica",
    /// An artifact is pinned for a deploy though regions of its plan lack it.
    PinUnreplicated = "pin-unreplicated",
    /// An artifact is retired though a service needs it.
    RetirePinned = "retire-pinned",
    /// What nothing referred to is deleted without a look whether something does by now.
    CollectWithoutLookingAgain = "collect-without-looking-again",
    /// A round goes on though another one has removed announcements meanwhile.
    CollectThoughReplaced = "collect-though-replaced",
    /// A rollout does not halt when more nodes fail than its budget allows.
    IgnoreFailureBudget = "ignore-failure-budget",
    /// A new goal's version begins at the first revision again.
    RestartGoalVersions = "restart-goal-versions",
    /// A wave passes before every shard has answered.
    PassBeforeAllAnswered = "pass-before-all-answered",
    /// A node takes any goal that comes, also an older one.
    AcceptOlderGoals = "accept-older-goals",
    /// A node runs a release without a look at its bytes.
    RunUnverified = "run-unverified",
    /// A node tries a release that failed again and again.
    RetryFailedRelease = "retry-failed-release",
    /// A region that starts again goes on with the boot that it had.
    ReuseBoot = "reuse-boot",
    /// A region takes the copy of a pack for good before it has verified it.
    ReportUnverifiedReplica = "report-unverified-replica",
}

#[cfg(feature = "planted-bugs")]
mod on {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this bug is planted on this thread.
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants this bug on this thread, and no other.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
#[cfg(feature = "planted-bugs")]
pub use on::{plant, planted};

/// Whether this bug is planted. Never, without the feature `planted-bugs`.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}
