//! What nodes say of themselves.

use super::symbols;

symbols! {
    /// Where a node stands with a goal.
    pub enum NodeStatus {
        /// The goal is known; packs are on their way.
        Fetching,
        /// All bytes are verified and in place; the switch is next.
        Staged,
        /// The new release was started and is not healthy yet.
        Starting,
        /// The release that the goal wants runs and is healthy.
        Healthy,
        /// The release failed, and there is no earlier one to run.
        Failed,
        /// The release failed; the earlier one runs again.
        RolledBack,
        /// The goal wants nothing of this service here, and nothing runs.
        Stopped,
    }
}

impl NodeStatus {
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::RolledBack)
    }
}
