//! Parquet files with the columns of the formats of lines, one request a row (builds with the feature `parquet`).
//!
//! With `timestamp`, `input_length` and `hash_ids` a row means what a line of a Mooncake trace means, else what a line of
//! the `tokens` format means. Columns of other names are passed over. Each row goes through the reader of that format, so
//! everything that is refused in a line is refused in a row.

use std::path::Path;

use kvwise_core::Result;

use super::{Loaded, ReadOptions};

/// Whether the file starts as Parquet files do.
pub(super) fn is_parquet(path: &Path) -> bool {
    let mut start = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start))
        .is_ok_and(|()| &start == b"PAR1")
}

/// Reads a trace of rows.
pub(super) fn read(path: &Path, options: &ReadOptions<'_>) -> Result<Loaded> {
    imp::read(path, options)
}

/// How many rows the file says it has; `None` where it cannot be read.
pub(super) fn rows(path: &Path) -> Option<u64> {
    imp::rows(path)
}

#[cfg(not(feature = "parquet"))]
mod imp {
    use std::path::Path;

    use kvwise_core::{Error, Result};

    use crate::trace::{Loaded, ReadOptions};

    pub(super) fn rows(_: &Path) -> Option<u64> {
        None
    }

    pub(super) fn read(path: &Path, _: &ReadOptions<'_>) -> Result<Loaded> {
        Err(Error::unsupported(format!(
            "{}: this build cannot read Parquet",
            path.display()
        ))
        .hint("build it with `cargo build --release -p kvwise --features parquet`, or write the file as JSON lines"))
    }
}

#[cfg(feature = "parquet")]
mod imp {
    use std::fs::File;
    use std::path::Path;

    use kvwise_core::{Error, Result};
    use kvwise_sim::trace::{IdMeaning, TraceBuilder, TraceFormat};
    use parquet::errors::ParquetError;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, Row};

    use crate::trace::{CHECK_EVERY, EXAMPLES, Loaded, Progress, ReadOptions, check_memory, finish, jsonl};

    /// The columns that mean something.
    const KNOWN: [&str; 14] = [
        "id",
        "arrival",
        "timestamp",
        "tokens",
        "hash_ids",
        "input_len",
        "input_length",
        "output_len",
        "output_length",
        "output_tokens",
        "priority",
        "cache_salt",
        "extra_key",
        "lora",
    ];

    pub(super) fn rows(path: &Path) -> Option<u64> {
        let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
        u64::try_from(reader.metadata().file_metadata().num_rows()).ok()
    }

    pub(super) fn read(path: &Path, options: &ReadOptions<'_>) -> Result<Loaded> {
        let name = path.display().to_string();
        let damaged = |e: ParquetError| Error::input(format!("{name}: the Parquet file cannot be read: {e}"));
        let file = File::open(path).map_err(|e| Error::io(format!("{name}: cannot open: {e}")))?;
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        let metadata = reader.metadata().file_metadata();
        let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
        let columns: Vec<&str> = metadata
            .schema()
            .get_fields()
            .iter()
            .map(|field| field.name())
            .collect();
        let mooncake = ["timestamp", "input_length", "hash_ids"]
            .iter()
            .all(|column| columns.contains(column));
        let meaning = if mooncake {
            IdMeaning::Prefix
        } else {
            IdMeaning::Content
        };
        let block = options.hash_block_tokens.unwrap_or(512);
        let mut builder = TraceBuilder::new(name.clone(), block, meaning).format(TraceFormat::Parquet);
        let mut scratch = jsonl::Scratch::default();
        let (mut skipped, mut examples) = (0, Vec::new());
        let mut line = String::new();
        for (number, row) in (1u64..).zip(reader.get_row_iter(None).map_err(damaged)?) {
            let row = row.map_err(damaged)?;
            let result = as_json(&row, &mut line).and_then(|()| {
                if mooncake {
                    jsonl::mooncake(line.as_bytes(), &mut scratch, &mut builder, options.sort)
                } else {
                    jsonl::tokens(line.as_bytes(), &mut scratch, &mut builder)
                }
            });
            if let Err(e) = result {
                let e = e.at(format_args!("{name}: row {number}"));
                if !options.skip_bad {
                    return Err(e.hint("to leave out unreadable rows, add --skip-bad"));
                }
                skipped += 1;
                if examples.len() < EXAMPLES {
                    examples.push(e.to_string());
                }
            }
            if number.is_multiple_of(CHECK_EVERY as u64) {
                check_memory(&builder, options, &name)?;
                if let Some(progress) = options.progress {
                    progress(Progress {
                        read_bytes: number,
                        total_bytes: Some(rows),
                        requests: builder.len() as u64,
                    });
                }
            }
            if options.limit.is_some_and(|limit| builder.len() >= limit) {
                break;
            }
        }
        finish(builder, options, skipped, examples, &name)
    }

    /// The known columns of a row as a JSON object.
    fn as_json(row: &Row, line: &mut String) -> Result<()> {
        line.clear();
        line.push('{');
        for (name, field) in row.get_column_iter() {
            if !KNOWN.contains(&name.as_str()) || *field == Field::Null {
                continue;
            }
            if line.len() > 1 {
                line.push(',');
            }
            line.push_str(&format!("\"{name}\":"));
            value(name, field, line)?;
        }
        line.push('}');
        Ok(())
    }

    fn value(name: &str, field: &Field, line: &mut String) -> Result<()> {
        let text = match field {
            Field::Byte(n) => n.to_string(),
            Field::Short(n) => n.to_string(),
            Field::Int(n) => n.to_string(),
            Field::Long(n) | Field::TimestampMillis(n) => n.to_string(),
            Field::UByte(n) => n.to_string(),
            Field::UShort(n) => n.to_string(),
            Field::UInt(n) => n.to_string(),
            Field::ULong(n) => n.to_string(),
            Field::Float(x) => x.to_string(),
            Field::Double(x) => x.to_string(),
            Field::Str(text) => serde_json::Value::from(text.as_str()).to_string(),
            Field::ListInternal(list) => {
                line.push('[');
                for (at, item) in list.elements().iter().enumerate() {
                    if at > 0 {
                        line.push(',');
                    }
                    value(name, item, line)?;
                }
                line.push(']');
                return Ok(());
            }
            other => {
                return Err(Error::input(format!(
                    "column \"{name}\" is {other}, expected a number, a text or a list of numbers"
                )));
            }
        };
        line.push_str(&text);
        Ok(())
    }

    #[cfg(test)]
    mod tests {
        use std::sync::Arc;

        use parquet::data_type::Int64Type;
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        use parquet::schema::parser::parse_message_type;

        use super::*;

        /// Two requests of 1,000 and 1,100 tokens; the second has `third` behind the ids of the first.
        fn file(path: &Path, lengths: [i64; 2], third: i64) {
            let schema = "message trace { required int64 timestamp; required int64 input_length;
                required int64 output_length; optional group hash_ids (LIST) {
                repeated group list { optional int64 element; } } required int64 other; }";
            let schema = Arc::new(parse_message_type(schema).unwrap());
            let properties = Arc::new(WriterProperties::builder().build());
            let mut writer =
                SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
            let mut group = writer.next_row_group().unwrap();
            let ids = [0, 1, 0, 1, third];
            let columns: [&[i64]; 5] = [&[0, 2500], &lengths, &[5, 7], &ids, &[9, 9]];
            for (at, values) in columns.iter().enumerate() {
                let mut column = group.next_column().unwrap().unwrap();
                let (levels, starts): (&[i16], &[i16]) = if at == 3 {
                    (&[3; 5], &[0, 1, 0, 1, 1])
                } else {
                    (&[], &[])
                };
                column
                    .typed::<Int64Type>()
                    .write_batch(
                        values,
                        Some(levels).filter(|l| !l.is_empty()),
                        Some(starts).filter(|s| !s.is_empty()),
                    )
                    .unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
            writer.close().unwrap();
        }

        #[test]
        fn rows_are_read_as_lines_of_the_format_their_columns_name() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("trace.parquet");
            file(&path, [1000, 1100], 2);
            let trace = crate::trace::open(&path, &ReadOptions::default()).unwrap().trace;
            assert_eq!(trace.format(), TraceFormat::Parquet);
            assert_eq!(trace.input_lens(), [1000, 1100]);
            assert_eq!((trace.arrival(1), trace.block_tokens()), (Some(2.5), Some(512)));
            let paths = trace.to_blocks(None).unwrap();
            assert_eq!(paths.unique_blocks(), 3, "two of five blocks are shared");
        }

        #[test]
        fn what_is_wrong_in_a_row_is_said_with_its_number() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("trace.parquet");
            file(&path, [1000, 0], 2);
            let message = crate::trace::open(&path, &ReadOptions::default())
                .unwrap_err()
                .to_string();
            assert!(message.contains("row 2"), "{message}");
            let options = ReadOptions {
                skip_bad: true,
                ..ReadOptions::default()
            };
            let loaded = crate::trace::open(&path, &options).unwrap();
            assert_eq!((loaded.trace.len(), loaded.skipped), (1, 1));
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            let message = crate::trace::open(&path, &ReadOptions::default())
                .unwrap_err()
                .to_string();
            assert!(message.contains("cannot be read"), "{message}");
        }
    }
}
