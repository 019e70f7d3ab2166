//! A table of an answer as a Parquet file, for pandas, `DuckDB`, Polars and Spark.
//!
//! Writing needs a build with the feature `parquet`; without it the answer says so.

use std::path::Path;

use kvwise_core::{Error, Result};

/// The cells of one column; `None` where a row has no value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cells {
    /// 64-bit integers.
    Integers(Vec<Option<i64>>),
    /// 64-bit floats.
    Reals(Vec<Option<f64>>),
    /// UTF-8.
    Texts(Vec<Option<String>>),
}

/// Writes columns of equal length under their names; the file appears whole or not at all.
///
/// # Errors
/// If the program was built without the feature `parquet`.
#[cfg(not(feature = "parquet"))]
pub fn write(path: &Path, _: &str, _: &[(String, Cells)]) -> Result<()> {
    Err(Error::unsupported(format!(
        "{}: this build of kvwise does not write Parquet files",
        path.display()
    ))
    .hint("build it with `cargo build --release -p kvwise --features parquet`, or use --format csv"))
}

/// Writes columns of equal length under their names; the file appears whole or not at all.
///
/// # Errors
/// If the file cannot be written.
#[cfg(feature = "parquet")]
pub fn write(path: &Path, table: &str, columns: &[(String, Cells)]) -> Result<()> {
    use std::sync::Arc;

    use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::types::Type;

    let bad = |e: parquet::errors::ParquetError| Error::io(format!("{}: cannot write: {e}", path.display()));
    let field = |(name, cells): &(String, Cells)| {
        let (physical, logical) = match cells {
            Cells::Integers(_) => (Physical::INT64, None),
            Cells::Reals(_) => (Physical::DOUBLE, None),
            Cells::Texts(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        Type::primitive_type_builder(name, physical)
            .with_logical_type(logical)
            .with_repetition(Repetition::OPTIONAL)
            .build()
            .map(Arc::new)
    };
    let fields = columns
        .iter()
        .map(field)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(bad)?;
    let schema = Type::group_type_builder(table)
        .with_fields(fields)
        .build()
        .map_err(bad)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let file = crate::atomic::AtomicFile::create(path)?;
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(bad)?;
    let mut group = writer.next_row_group().map_err(bad)?;
    for (_, cells) in columns {
        let Some(mut column) = group.next_column().map_err(bad)? else {
            break;
        };
        match (column.untyped(), cells) {
            (ColumnWriter::Int64ColumnWriter(w), Cells::Integers(v)) => {
                let values: Vec<i64> = v.iter().flatten().copied().collect();
                let levels: Vec<i16> = v.iter().map(|x| i16::from(x.is_some())).collect();
                w.write_batch(&values, Some(&levels), None).map_err(bad)?;
            }
            (ColumnWriter::DoubleColumnWriter(w), Cells::Reals(v)) => {
                let values: Vec<f64> = v.iter().flatten().copied().collect();
                let levels: Vec<i16> = v.iter().map(|x| i16::from(x.is_some())).collect();
                w.write_batch(&values, Some(&levels), None).map_err(bad)?;
            }
            (ColumnWriter::ByteArrayColumnWriter(w), Cells::Texts(v)) => {
                let values: Vec<ByteArray> =
                    v.iter().flatten().map(|t| ByteArray::from(t.as_str())).collect();
                let levels: Vec<i16> = v.iter().map(|x| i16::from(x.is_some())).collect();
                w.write_batch(&values, Some(&levels), None).map_err(bad)?;
            }
            _ => {
                return Err(Error::io(format!(
                    "{}: a column is of another type than its schema",
                    path.display()
                )));
            }
        }
        column.close().map_err(bad)?;
    }
    group.close().map_err(bad)?;
    writer.into_inner().map_err(bad)?.commit()?;
    Ok(())
}

/// Reads the columns of a file that [`write`] wrote.
///
/// # Errors
/// If the file cannot be read, or has columns of other types than those.
#[cfg(feature = "parquet")]
pub fn read(path: &Path) -> Result<Vec<(String, Cells)>> {
    use parquet::basic::Type as Physical;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    let bad = |e: &dyn std::fmt::Display| Error::io(format!("{}: cannot read: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| bad(&e))?;
    let reader = SerializedFileReader::new(file).map_err(|e| bad(&e))?;
    let mut columns = Vec::new();
    for column in reader.metadata().file_metadata().schema_descr().columns() {
        let cells = match column.physical_type() {
            Physical::INT64 => Cells::Integers(Vec::new()),
            Physical::DOUBLE => Cells::Reals(Vec::new()),
            Physical::BYTE_ARRAY => Cells::Texts(Vec::new()),
            other => return Err(bad(&format!("the column {} is of type {other}", column.name()))),
        };
        columns.push((column.name().to_owned(), cells));
    }
    for row in reader.get_row_iter(None).map_err(|e| bad(&e))? {
        let row = row.map_err(|e| bad(&e))?;
        for ((_, field), (name, cells)) in row.get_column_iter().zip(&mut columns) {
            match (cells, field) {
                (Cells::Integers(v), Field::Long(x)) => v.push(Some(*x)),
                (Cells::Integers(v), Field::Null) => v.push(None),
                (Cells::Reals(v), Field::Double(x)) => v.push(Some(*x)),
                (Cells::Reals(v), Field::Null) => v.push(None),
                (Cells::Texts(v), Field::Str(x)) => v.push(Some(x.clone())),
                (Cells::Texts(v), Field::Null) => v.push(None),
                (_, other) => return Err(bad(&format!("the column {name} has a cell {other}"))),
            }
        }
    }
    Ok(columns)
}

#[cfg(all(test, feature = "parquet"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_its_gaps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let columns = [
            ("n".to_owned(), Cells::Integers(vec![Some(1), None])),
            ("x".to_owned(), Cells::Reals(vec![None, Some(0.5)])),
            ("name".to_owned(), Cells::Texts(vec![Some("a".to_owned()), None])),
        ];
        write(&path, "t", &columns).unwrap();
        assert_eq!(read(&path).unwrap(), columns);
        std::fs::write(&path, "PAR1 and nothing else").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("t.parquet"));
    }
}
