//! Reads header blocks, whole ones, in the order in which they came.

use super::table::{Entry, Name, STATIC_ENTRIES, Table};
use super::{Error, huffman, integer};
use crate::limits::H2_TABLE_BYTES;
use bytes::Bytes;
use http::HeaderValue;
use std::ops::Range;

/// Changes of the table's size that one block may begin with: the smallest and the last are said (RFC 7541 §4.2).
const SIZE_UPDATES: usize = 2;

/// How a literal's name was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameForm {
    /// By its index in the static table.
    Static(u8),
    /// By its index in the sender's table.
    Dynamic,
    /// In full: where in the block, with its length before it.
    Literal(Range<usize>),
}

/// How a field was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// As an entry of the static table.
    Static(u8),
    /// As an entry of the sender's table.
    Dynamic,
    /// With its value in full.
    Literal {
        /// It must never be put into a table (§7.1.3), by nobody on the way.
        never: bool,
        /// The name.
        name: NameForm,
        /// Where in the block the value is, with its length before it.
        value: Range<usize>,
    },
}

/// One field of a block.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name.
    pub name: Name,
    /// Its value; empty where the name is [`Name::Bad`].
    pub value: HeaderValue,
    /// How it was written.
    pub form: Form,
}

/// What a block holds.
#[derive(Debug, Default)]
pub struct Block {
    /// The fields; not all of them if there were too many.
    pub lines: Vec<Line>,
    /// They are larger than the limit.
    pub over: bool,
    /// The sender's table is another one now: whoever has not read this block cannot read the next.
    pub changed: bool,
}

/// Reads one sender's blocks.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Table,
    /// What Huffman codes stood for, before it has its place.
    text: Vec<u8>,
}

impl Decoder {
    /// Reads one block. `most`: how large its fields may be together (RFC 9113 §6.5.2).
    ///
    /// # Errors
    /// [`Error`]: the connection cannot go on.
    pub fn decode(&mut self, block: &[u8], most: usize) -> Result<Block, Error> {
        let mut read = Block::default();
        let (mut at, mut size, mut updates) = (0, 0, 0);
        while let Some(first) = block.get(at).copied() {
            if first & 0xe0 == 0x20 {
                updates += 1;
                let most = integer::read(block, &mut at, 5)?;
                if size > 0 || updates > SIZE_UPDATES || most > H2_TABLE_BYTES {
                    return Err(Error::TableSize);
                }
                self.table.resize(most);
                read.changed = true;
                continue;
            }
            let (entry, form) = if first & 0x80 == 0x80 {
                let index = integer::read(block, &mut at, 7)?;
                size += self.entry(index)?.size;
                if size > most {
                    // Not even looked at any longer: references are cheap to send.
                    read.over = true;
                    continue;
                }
                let form = static_index(index).map_or(Form::Dynamic, Form::Static);
                (self.entry(index)?.clone(), form)
            } else {
                let (entry, form) = self.literal(block, &mut at)?;
                size += entry.size;
                if first & 0xc0 == 0x40 {
                    read.changed = true;
                    self.table.insert(entry.clone());
                }
                (entry, form)
            };
            read.over |= size > most;
            if !read.over {
                read.lines.push(Line { name: entry.name, value: entry.value, form });
            }
        }
        Ok(read)
    }

    fn entry(&self, index: usize) -> Result<&Entry, Error> {
        self.table.get(index).ok_or(Error::Index)
    }

    fn literal(&mut self, block: &[u8], at: &mut usize) -> Result<(Entry, Form), Error> {
        let first = block.get(*at).copied().ok_or(Error::Truncated)?;
        let prefix = if first & 0x40 == 0x40 { 6 } else { 4 };
        let never = first & 0xf0 == 0x10;
        let index = integer::read(block, at, prefix)?;
        let (name, name_length, name_form) = if index == 0 {
            let from = *at;
            let bytes = string(block, at, &mut self.text)?;
            (Name::new(bytes), bytes.len(), NameForm::Literal(from..*at))
        } else {
            let entry = self.entry(index)?;
            let form = static_index(index).map_or(NameForm::Dynamic, NameForm::Static);
            (entry.name.clone(), entry.name_length, form)
        };
        let from = *at;
        let value = Bytes::copy_from_slice(string(block, at, &mut self.text)?);
        let form = Form::Literal { never, name: name_form, value: from..*at };
        Ok((Entry::new(name, name_length, value), form))
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> (usize, Vec<(String, String)>) {
        self.table.contents()
    }
}

fn static_index(index: usize) -> Option<u8> {
    (index <= STATIC_ENTRIES).then(|| u8::try_from(index).ok()).flatten()
}

/// Reads a string (RFC 7541 §5.2); `text` holds it where it was Huffman codes.
fn string<'a>(block: &'a [u8], at: &mut usize, text: &'a mut Vec<u8>) -> Result<&'a [u8], Error> {
    let coded = block.get(*at).is_some_and(|first| first & 0x80 == 0x80);
    let length = integer::read(block, at, 7)?;
    let bytes = block.get(*at..).and_then(|rest| rest.get(..length)).ok_or(Error::Truncated)?;
    *at += length;
    if !coded {
        return Ok(bytes);
    }
    text.clear();
    huffman::decode(bytes, text)?;
    Ok(text)
}
