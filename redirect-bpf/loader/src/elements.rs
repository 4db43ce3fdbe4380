//! Many elements of a map at once: written, removed, walked over.
//!
//! By the calls that the kernel has for it (Linux 5.6; of tries 5.13), else one by one. Knows the length of keys and
//! values, not their meaning. Called by what writes a generation, and by the walk over the flow table.

use crate::sys::{self, Batch, Many, One};
use aya::Pod;
use aya::maps::MapData;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{null, null_mut};

/// Elements of one call: more than any bucket of a hash table has, which the kernel gives whole.
pub(crate) const BATCH: usize = 4_096;
/// What the kernel says of a map that has no such call (`ENOTSUPP`, which the libraries do not know).
const NOT_SUPPORTED: i32 = 524;

/// A map, by what is in it.
pub(crate) struct Elements<'a, K, V> {
    map: BorrowedFd<'a>,
    types: PhantomData<(K, V)>,
}

impl<'a, K: Pod + Default, V: Pod + Default> Elements<'a, K, V> {
    /// Of this map, if its keys and values are as long as these.
    pub(crate) fn of(map: &'a MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        if (key, value) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other(format!("its keys have {key} bytes, its values {value}")));
        }
        Ok(Self { map: map.fd().as_fd(), types: PhantomData })
    }

    /// Writes all of these, over what is there.
    pub(crate) fn write(&self, entries: impl Iterator<Item = (K, V)>) -> io::Result<()> {
        let (mut keys, mut values): (Vec<K>, Vec<V>) = entries.unzip();
        for (keys, values) in keys.chunks_mut(BATCH).zip(values.chunks_mut(BATCH)) {
            self.many(Batch::Update, keys, values, |key, value| self.one(One::Update, key, value))?;
        }
        Ok(())
    }

    /// Removes all of these, which are there.
    pub(crate) fn remove(&self, keys: impl Iterator<Item = K>) -> io::Result<()> {
        let mut keys: Vec<K> = keys.collect();
        for keys in keys.chunks_mut(BATCH) {
            let mut none = vec![V::default(); keys.len()];
            self.many(Batch::Delete, keys, &mut none, |key, value| self.one(One::Delete, key, value))?;
        }
        Ok(())
    }

    /// Removes this one.
    pub(crate) fn remove_one(&self, mut key: K) -> io::Result<()> {
        self.one(One::Delete, &mut key, &mut V::default())
    }

    /// Every element, [`BATCH`] at a time; `seen` says whether to go on. It marks none as used.
    pub(crate) fn walk(&self, mut seen: impl FnMut(&[K], &[V]) -> bool) -> io::Result<()> {
        let (mut keys, mut values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
        // A place in a hash table is a number, one in a trie a key.
        let place = || vec![0_u8; size_of::<K>().max(size_of::<u64>())];
        let (mut from, mut to, mut begun) = (place(), place(), false);
        loop {
            let many = Many {
                from: if begun { from.as_ptr() } else { null() },
                to: to.as_mut_ptr(),
                keys: keys.as_mut_ptr().cast(),
                values: values.as_mut_ptr().cast(),
                count: BATCH,
            };
            // SAFETY: so many keys and values there are, as long as the map's, and a place is long enough.
            let (count, done) = unsafe { sys::many(Batch::Lookup, self.map, many) };
            match done {
                Err(error) if is(&error, libc::ENOENT) => {
                    seen(&keys[..count], &values[..count]);
                    return Ok(());
                }
                Err(error) if !begun && lacks(&error) => return self.step(seen),
                Err(error) => return Err(error),
                Ok(()) if !seen(&keys[..count], &values[..count]) => return Ok(()),
                Ok(()) => std::mem::swap(&mut from, &mut to),
            }
            begun = true;
        }
    }

    /// The walk, one by one.
    fn step(&self, mut seen: impl FnMut(&[K], &[V]) -> bool) -> io::Result<()> {
        let mut before: Option<K> = None;
        loop {
            let mut key = K::default();
            let last = before.as_ref().map_or(null(), |key| std::ptr::from_ref(key).cast());
            // SAFETY: keys of the map, or nothing, which is before the first.
            let next = unsafe { sys::one(One::NextKey, self.map, last, std::ptr::from_mut(&mut key).cast()) };
            match next {
                Err(error) if is(&error, libc::ENOENT) => return Ok(()),
                other => other?,
            }
            let mut value = V::default();
            match self.one(One::Lookup, &mut key, &mut value) {
                // Gone meanwhile.
                Err(error) if is(&error, libc::ENOENT) => {}
                other => {
                    other?;
                    if !seen(&[key], &[value]) {
                        return Ok(());
                    }
                }
            }
            before = Some(key);
        }
    }

    fn many(
        &self,
        command: Batch,
        keys: &mut [K],
        values: &mut [V],
        one: impl Fn(&mut K, &mut V) -> io::Result<()>,
    ) -> io::Result<()> {
        let many = Many {
            from: null(),
            to: null_mut(),
            keys: keys.as_mut_ptr().cast(),
            values: if command == Batch::Delete { null_mut() } else { values.as_mut_ptr().cast() },
            count: keys.len(),
        };
        // SAFETY: as many keys and values as are said, as long as the map's.
        match unsafe { sys::many(command, self.map, many) } {
            (_, Err(error)) if lacks(&error) => {
                keys.iter_mut().zip(values).try_for_each(|(key, value)| one(key, value))
            }
            (_, done) => done,
        }
    }

    fn one(&self, command: One, key: &mut K, value: &mut V) -> io::Result<()> {
        // SAFETY: a key and a value of the map.
        unsafe {
            sys::one(command, self.map, std::ptr::from_ref(key).cast(), std::ptr::from_mut(value).cast())
        }
    }
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}

/// Whether the kernel has no such call, or not for this kind of map.
fn lacks(error: &io::Error) -> bool {
    is(error, NOT_SUPPORTED) || is(error, libc::EINVAL)
}
