//! Level two of the cache: which slot holds the token at each position of each running request.
//!
//! Mirrors SGLang 0.5.23's `ReqToTokenPool` (`sglang/srt/mem_cache/memory_pool.py`): row 0 is padding, the row
//! freed last is given out first, and every row counts its owners, so that a stale handle is refused.

use crate::error::{Error, Result};

/// One request's row; refused after the row was freed, even when another request has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    index: u32,
    generation: u64,
}

impl Row {
    /// The row's number, from 1 on: what an attention kernel takes as `req_pool_idx`.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// `requests + 1` rows of `width` slots each.
#[derive(Debug, Clone)]
pub struct RowTable {
    slots: Vec<u32>,
    width: usize,
    free: Vec<u32>,
    generations: Vec<u64>,
}

impl RowTable {
    /// A table for `requests` rows of `width` tokens, besides the padding row.
    ///
    /// # Errors
    /// If the table would have more than 2^40 entries, or 2^32 rows.
    pub fn new(requests: usize, width: usize) -> Result<Self> {
        let rows = u32::try_from(requests).ok().and_then(|r| r.checked_add(1));
        let cells = rows
            .and_then(|rows| width.checked_mul(rows as usize))
            .filter(|&cells| cells <= 1 << 40)
            .ok_or_else(|| {
                Error::overflow(format!(
                    "a table of {requests} rows of {width} slots is too large"
                ))
            })?;
        Ok(Self {
            slots: vec![0; cells],
            width,
            free: (1..=requests as u32).collect(),
            generations: vec![0; requests + 1],
        })
    }

    /// Tokens a row can hold.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows not in use.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Takes the row that was freed last.
    ///
    /// # Errors
    /// If all rows are in use.
    pub fn alloc(&mut self) -> Result<Row> {
        let index = self.free.pop().ok_or_else(|| {
            Error::exhausted(format!(
                "all {} request rows are in use",
                self.generations.len() - 1
            ))
        })?;
        let generation = &mut self.generations[index as usize];
        *generation += 1;
        Ok(Row {
            index,
            generation: *generation,
        })
    }

    /// Gives a row back; handles to it are stale from now on.
    ///
    /// # Errors
    /// If the handle is stale.
    pub fn free(&mut self, row: Row) -> Result<()> {
        self.check(row)?;
        self.generations[row.index as usize] += 1;
        self.free.push(row.index);
        Ok(())
    }

    /// The slots of a row, by token position.
    ///
    /// # Errors
    /// If the handle is stale.
    pub fn get(&self, row: Row) -> Result<&[u32]> {
        self.check(row)?;
        let start = row.index as usize * self.width;
        Ok(&self.slots[start..start + self.width])
    }

    /// The slots of a row, to write.
    ///
    /// # Errors
    /// If the handle is stale.
    pub fn get_mut(&mut self, row: Row) -> Result<&mut [u32]> {
        self.check(row)?;
        let start = row.index as usize * self.width;
        Ok(&mut self.slots[start..start + self.width])
    }

    /// Frees all rows; generations go on, so older handles stay stale.
    pub fn clear(&mut self) {
        self.free.clear();
        self.free.extend(1..self.generations.len() as u32);
        for generation in &mut self.generations {
            *generation += 1;
        }
    }

    fn check(&self, row: Row) -> Result<()> {
        match self.generations.get(row.index as usize) {
            Some(&generation) if generation == row.generation => Ok(()),
            _ => Err(Error::stale(format!(
                "row {} was freed or belongs to another table",
                row.index
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_freed_last_is_given_first_and_its_old_handle_is_refused() {
        let mut rows = RowTable::new(3, 4).unwrap();
        let (a, b) = (rows.alloc().unwrap(), rows.alloc().unwrap());
        assert_eq!((a.index(), b.index()), (3, 2));
        rows.free(a).unwrap();
        assert!(rows.get(a).is_err());
        assert!(rows.free(a).is_err());
        let again = rows.alloc().unwrap();
        assert_eq!(again.index(), 3);
        assert!(rows.get(a).is_err() && rows.get(again).is_ok());
        rows.clear();
        assert!(rows.get(b).is_err());
        assert_eq!(rows.available(), 3);
    }

    #[test]
    fn a_table_that_cannot_exist_is_refused() {
        assert!(RowTable::new(usize::MAX, 2).is_err());
        assert!(RowTable::new(1 << 20, 1 << 40).is_err());
    }
}
