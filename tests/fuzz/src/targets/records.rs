//! Records in the local log's folder.

use bytes::Bytes;
use longshore_log::{Record, local};
use longshore_schemas::Timestamp;

use crate::{Random, Subject};

struct Records;

pub(super) fn start() -> Box<dyn Subject> {
    Box::new(Records)
}

impl Subject for Records {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Some((at, record)) = local::decode_stored(Bytes::copy_from_slice(input)) else {
            return Ok("no record".to_owned());
        };
        let again = local::decode_stored(Bytes::from(local::encode_stored(at, &record)));
        if again != Some((at, record.clone())) {
            return Err(format!("it is written and read as another: {record:?} {again:?}"));
        }
        let Record { key, value, headers } = record;
        let value = value.map(|value| value.len().ilog2_or_zero());
        Ok(format!("{} {value:?} {}", key.len().ilog2_or_zero(), headers.len()))
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut piece = |max| {
            let count = random.below(max);
            Bytes::from(random.bytes(count))
        };
        let (key, value, headers) = (piece(20), piece(100), piece(4));
        let value = (!value.len().is_multiple_of(5)).then_some(value);
        let headers = headers.iter().map(|byte| (format!("h{byte}"), Bytes::copy_from_slice(&[*byte]))).collect();
        local::encode_stored(Timestamp::from_millis(random.draw() as i64), &Record { key, value, headers })
    }
}

trait Log2 {
    fn ilog2_or_zero(self) -> u32;
}

impl Log2 for usize {
    fn ilog2_or_zero(self) -> u32 {
        self.checked_ilog2().unwrap_or(0)
    }
}
