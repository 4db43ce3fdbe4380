//! Writes header blocks that need no table: whoever reads them needs to have read nothing before.
//!
//! What the static table or a literal says is copied as it came; what the sender's table said is written in full.
//! Nothing is ever put into the receiver's table, so a field that must never be indexed is not, and nothing can get
//! out of step.

use super::decoder::{Form, Line, NameForm};
use super::integer;
use super::table::Name;

/// Empties the receiver's table: the first octet of the first block after it was somebody else's.
pub const FLUSH: u8 = 0x20;

/// A literal that is in no table.
const WITHOUT: u8 = 0x00;
/// A literal that must never be.
const NEVER: u8 = 0x10;

/// One block, as it is written.
#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// The block.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    /// A field of a block that came, which means the same without a table.
    pub fn line(&mut self, line: &Line, block: &[u8]) {
        match &line.form {
            Form::Static(index) => integer::write(&mut self.out, 0x80, 7, usize::from(*index)),
            Form::Dynamic => self.field(&line.name, line.value.as_bytes(), false),
            Form::Literal { never, name, value } => {
                let kind = if *never { NEVER } else { WITHOUT };
                match name {
                    NameForm::Static(index) => {
                        integer::write(&mut self.out, kind, 4, usize::from(*index));
                    }
                    NameForm::Dynamic => self.name(&line.name, kind),
                    NameForm::Literal(at) => {
                        self.out.push(kind);
                        self.out.extend_from_slice(&block[at.clone()]);
                    }
                }
                self.out.extend_from_slice(&block[value.clone()]);
            }
        }
    }

    /// A field of ours; `never`: it must never be put into a table.
    pub fn field(&mut self, name: &Name, value: &[u8], never: bool) {
        self.name(name, if never { NEVER } else { WITHOUT });
        self.string(value);
    }

    fn name(&mut self, name: &Name, kind: u8) {
        let index = match name {
            Name::Pseudo(pseudo) => pseudo.index(),
            Name::Field(_) | Name::Bad => None,
        };
        if let Some(index) = index {
            integer::write(&mut self.out, kind, 4, usize::from(index));
        } else {
            self.out.push(kind);
            self.string(name.as_str().as_bytes());
        }
    }

    fn string(&mut self, text: &[u8]) {
        integer::write(&mut self.out, 0x00, 7, text.len());
        self.out.extend_from_slice(text);
    }
}
