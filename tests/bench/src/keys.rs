//! The key that a benchmark's requests are signed with, and the gate that believes it.

use std::sync::{Arc, LazyLock};

use longshore_runtime::{Gate, Keyring};
use longshore_schemas::auth::{KnownKeys, RequestKey, Sender};

/// The API's and the processors'.
pub static CONTROL: LazyLock<RequestKey> = LazyLock::new(|| RequestKey::new(Sender::Control, &[7; 32]));

pub fn gate() -> Arc<dyn Gate> {
    Arc::new(Keyring::new(CONTROL.clone(), KnownKeys::new([CONTROL.clone()])))
}
