//! The same bytes by apache-avro, from the schema files: what everything else is held against.

use apache_avro::{Schema, reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter};

use super::{Codec, CodecError, DatumError, Message, decode_with, header};

/// No text is longer: a claim above this is an error before memory is taken for it.
const ALLOCATION_BYTES_MAX: usize = 1024 * 1024;

/// apache-avro's reader and writer of one schema.
pub(super) struct Reference {
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl Reference {
    fn of(codec: &'static Codec) -> &'static Self {
        codec.reference.get_or_init(|| {
            apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
            let schema = Schema::parse_str(codec.json).expect("a test parses every schema");
            // One per topic for the life of the process: readers and writers borrow it.
            let schema: &'static Schema = Box::leak(Box::new(schema));
            Self {
                reader: GenericDatumReader::builder(schema).build().expect("a test resolves every schema"),
                writer: GenericDatumWriter::builder(schema).build().expect("a test resolves every schema"),
            }
        })
    }
}

/// What [`super::encode`] must write.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let codec = M::codec();
    let mut bytes = header(codec);
    let written = Reference::of(codec).writer.write_ser(&mut bytes, message);
    written.map_err(|error| CodecError::Unwritable(DatumError::new(error)))?;
    Ok(bytes)
}

/// What [`super::decode`] must read.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    let codec = M::codec();
    decode_with(codec, bytes, |datum| Reference::of(codec).reader.read_deser(datum).map_err(DatumError::new))
}
