//! Every table of a recording as a Parquet file, for pandas, `DuckDB`, Polars and Spark.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvwise_core::{Error, Result};
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use rusqlite::types::ValueRef;

use super::Session;
use crate::atomic::AtomicFile;

/// Rows of one row group: what is held in memory at once.
const GROUP_ROWS: usize = 1 << 16;
/// Columns that are moments; other `_us` columns are lengths of time.
const MOMENTS: [&str; 5] = ["t_us", "start_us", "end_us", "arrival_us", "finish_us"];

/// One column of a row group.
enum Column {
    Integer(Vec<i64>),
    Real(Vec<f64>),
    Text(Vec<ByteArray>),
}

/// A column, and for each row whether it has a value (1) or not (0).
struct Chunk {
    name: String,
    values: Column,
    levels: Vec<i16>,
}

impl Chunk {
    fn clear(&mut self) {
        self.levels.clear();
        match &mut self.values {
            Column::Integer(v) => v.clear(),
            Column::Real(v) => v.clear(),
            Column::Text(v) => v.clear(),
        }
    }

    /// Takes one value; `None` if it is of another kind than the column.
    fn take(&mut self, value: ValueRef) -> Option<()> {
        self.levels.push(i16::from(!matches!(value, ValueRef::Null)));
        match (&mut self.values, value) {
            (_, ValueRef::Null) => {}
            (Column::Integer(v), ValueRef::Integer(i)) => v.push(i),
            (Column::Real(v), ValueRef::Real(x)) => v.push(x),
            (Column::Real(v), ValueRef::Integer(i)) => v.push(i as f64),
            (Column::Text(v), ValueRef::Text(text)) => v.push(ByteArray::from(text.to_vec())),
            _ => return None,
        }
        Some(())
    }
}

/// Writes `TABLE.parquet` for every table that has rows. Moments are timestamps in UTC.
///
/// # Errors
/// If the recording cannot be read or a file cannot be written; files that are there already are then unchanged.
pub fn write(session: &Session, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::io(format!("{}: cannot make the folder: {e}", folder.display())))?;
    let unreadable = |e: rusqlite::Error| Error::io(format!("session.sqlite: cannot read: {e}"));
    let mut statement = session
        .db
        .prepare(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
        )
        .map_err(unreadable)?;
    let tables = statement
        .query_map([], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<rusqlite::Result<Vec<String>>>)
        .map_err(unreadable)?;
    let mut paths = Vec::new();
    for table in tables {
        let path = folder.join(format!("{table}.parquet"));
        if write_table(session, &table, &path)? {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Writes one table; false if it has no rows.
fn write_table(session: &Session, table: &str, path: &Path) -> Result<bool> {
    let unreadable = |e: rusqlite::Error| Error::io(format!("session.sqlite: {table}: cannot read: {e}"));
    let unwritable =
        |e: parquet::errors::ParquetError| Error::io(format!("{}: cannot write: {e}", path.display()));
    let mut chunks = columns(session, table)?;
    let fields = chunks
        .iter()
        .map(field)
        .collect::<Result<Vec<_>, _>>()
        .map_err(unwritable)?;
    let schema = Type::group_type_builder(table)
        .with_fields(fields.into_iter().map(Arc::new).collect())
        .build()
        .map_err(unwritable)?;
    // table names come from our own schema or a foreign file: quoted either way
    let quoted = table.replace('"', "\"\"");
    let mut statement = session
        .db
        .prepare(&format!("SELECT * FROM \"{quoted}\""))
        .map_err(unreadable)?;
    let mut rows = statement.query([]).map_err(unreadable)?;
    let mut writer = None;
    let mut held = 0;
    loop {
        let row = rows.next().map_err(unreadable)?;
        if let Some(row) = row {
            for (i, chunk) in chunks.iter_mut().enumerate() {
                let value = row.get_ref(i).map_err(unreadable)?;
                chunk.take(value).ok_or_else(|| {
                    Error::input(format!(
                        "session.sqlite: {table}.{}: a value of type {} where the column has another",
                        chunk.name,
                        value.data_type()
                    ))
                })?;
            }
            held += 1;
        }
        let is_over = row.is_none();
        if held == GROUP_ROWS || (is_over && held > 0) {
            if writer.is_none() {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::SNAPPY)
                    .build();
                let file = AtomicFile::create(path)?;
                writer = Some(
                    SerializedFileWriter::new(file, Arc::new(schema.clone()), Arc::new(properties))
                        .map_err(unwritable)?,
                );
            }
            if let Some(writer) = &mut writer {
                write_group(writer, &chunks).map_err(unwritable)?;
            }
            chunks.iter_mut().for_each(Chunk::clear);
            held = 0;
        }
        if is_over {
            break;
        }
    }
    let Some(writer) = writer else { return Ok(false) };
    writer.into_inner().map_err(unwritable)?.commit()?;
    Ok(true)
}

fn write_group(
    writer: &mut SerializedFileWriter<AtomicFile>,
    chunks: &[Chunk],
) -> parquet::errors::Result<()> {
    let mut group = writer.next_row_group()?;
    for chunk in chunks {
        let Some(mut column) = group.next_column()? else {
            break;
        };
        let levels = Some(chunk.levels.as_slice());
        match (column.untyped(), &chunk.values) {
            (ColumnWriter::Int64ColumnWriter(w), Column::Integer(v)) => w.write_batch(v, levels, None)?,
            (ColumnWriter::DoubleColumnWriter(w), Column::Real(v)) => w.write_batch(v, levels, None)?,
            (ColumnWriter::ByteArrayColumnWriter(w), Column::Text(v)) => w.write_batch(v, levels, None)?,
            _ => {
                return Err(parquet::errors::ParquetError::General(format!(
                    "column {} is of another type than its schema",
                    chunk.name
                )));
            }
        };
        column.close()?;
    }
    group.close().map(|_| ())
}

fn columns(session: &Session, table: &str) -> Result<Vec<Chunk>> {
    let unreadable = |e: rusqlite::Error| Error::io(format!("session.sqlite: {table}: cannot read: {e}"));
    let mut statement = session
        .db
        .prepare("SELECT name, upper(type) FROM pragma_table_info(?1) ORDER BY cid")
        .map_err(unreadable)?;
    let found = statement
        .query_map([table], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
        .map_err(unreadable)?;
    found
        .into_iter()
        .map(|(name, kind)| {
            let values = match kind.as_str() {
                "INTEGER" => Column::Integer(Vec::new()),
                "REAL" => Column::Real(Vec::new()),
                "TEXT" => Column::Text(Vec::new()),
                other => {
                    return Err(Error::unsupported(format!(
                        "session.sqlite: {table}.{name} is of type \"{other}\", which no recording has"
                    )));
                }
            };
            Ok(Chunk {
                name,
                values,
                levels: Vec::new(),
            })
        })
        .collect()
}

fn field(chunk: &Chunk) -> parquet::errors::Result<Type> {
    let (physical, logical) = match chunk.values {
        Column::Integer(_) if MOMENTS.contains(&chunk.name.as_str()) => (
            Physical::INT64,
            Some(LogicalType::timestamp(true, TimeUnit::MICROS)),
        ),
        Column::Integer(_) => (Physical::INT64, None),
        Column::Real(_) => (Physical::DOUBLE, None),
        Column::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
    };
    Type::primitive_type_builder(&chunk.name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;
    use crate::session::store::Metadata;

    fn recording(folder: &Path) -> Session {
        Session::create(folder, Metadata::new("attach", vec!["x".to_owned()], 0)).unwrap()
    }

    #[test]
    fn every_row_and_null_comes_back_over_several_groups() {
        let folder = tempfile::tempdir().unwrap();
        let session = recording(&folder.path().join("s"));
        session
            .db
            .execute_batch("INSERT INTO target VALUES (1, 'x')")
            .unwrap();
        let rows = i64::try_from(GROUP_ROWS).expect("small") + 5;
        session
            .db
            .execute(
                "WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c WHERE i < ?1 - 1) \
                 INSERT INTO kv_removal SELECT 1, i * 1000, CASE WHEN i % 3 = 0 THEN NULL ELSE i END FROM c",
                [rows],
            )
            .unwrap();
        let out = folder.path().join("out");
        let paths = write(&session, &out).unwrap();
        assert!(
            paths.contains(&out.join("kv_removal.parquet")) && paths.contains(&out.join("target.parquet"))
        );
        assert!(!out.join("step.parquet").exists(), "an empty table has no file");
        let file = std::fs::File::open(out.join("kv_removal.parquet")).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let mut count = 0;
        for (i, row) in reader.get_row_iter(None).unwrap().enumerate() {
            let i = i64::try_from(i).unwrap();
            let row = row.unwrap();
            let values: Vec<&Field> = row.get_column_iter().map(|(_, v)| v).collect();
            assert_eq!(values[1], &Field::TimestampMicros(i * 1000));
            assert_eq!(values[2], &if i % 3 == 0 { Field::Null } else { Field::Long(i) });
            count += 1;
        }
        assert_eq!(count, rows);
        let file = std::fs::File::open(out.join("target.parquet")).unwrap();
        let row = SerializedFileReader::new(file)
            .unwrap()
            .get_row_iter(None)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert!(
            row.get_column_iter()
                .any(|(name, v)| name == "name" && *v == Field::Str("x".to_owned()))
        );
    }

    #[test]
    fn a_value_of_another_kind_is_named_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let session = recording(&folder.path().join("s"));
        session
            .db
            .execute_batch("PRAGMA foreign_keys = OFF; INSERT INTO event VALUES ('soon', 1, 'a', 'b')")
            .unwrap();
        let out = folder.path().join("out");
        let e = write(&session, &out).unwrap_err().to_string();
        assert!(e.contains("event.t_us") && e.contains("Text"), "{e}");
        assert!(!out.join("event.parquet").exists());
    }
}
