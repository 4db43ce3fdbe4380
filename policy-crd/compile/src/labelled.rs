//! What has which labels, so that a selector is asked about what it may select and not about everything.
//!
//! A cluster has thousands of selectors and tens of thousands of pods; most selectors name a value that few of them
//! have. Knows numbers and labels alone: pods, namespaces and peer classes are looked up by it.

use crate::selector::{Labels, Selector};
use std::collections::HashMap;
use std::ops::Range;

/// Numbers by the labels of what they stand for.
#[derive(Default)]
pub(crate) struct Labelled {
    /// By key and value; each list is sorted.
    lists: HashMap<String, HashMap<String, Vec<usize>>>,
}

impl Labelled {
    /// Everything with its labels, by rising number; of the labels those whose keys some selector may read.
    pub(crate) fn new<'a>(
        items: impl Iterator<Item = (usize, &'a Labels)>,
        is_read: impl Fn(&str) -> bool,
    ) -> Self {
        let mut lists: HashMap<String, HashMap<String, Vec<usize>>> = HashMap::new();
        for (number, labels) in items {
            for (key, value) in labels.iter().filter(|(key, _)| is_read(key)) {
                if !lists.contains_key(key) {
                    lists.insert(key.clone(), HashMap::new());
                }
                let Some(values) = lists.get_mut(key) else { continue };
                match values.get_mut(value) {
                    Some(list) => list.push(number),
                    None => _ = values.insert(value.clone(), vec![number]),
                }
            }
        }
        Self { lists }
    }

    /// Those of a range that a selector may select, each once. All that it selects are among them, if each key that
    /// it reads was indexed.
    pub(crate) fn candidates(&self, selector: &Selector, range: Range<usize>) -> Vec<usize> {
        match self.fewest(selector) {
            None => range.collect(),
            Some(lists) => lists.into_iter().flat_map(|list| within(list, &range)).copied().collect(),
        }
    }

    /// The lists of that label of which the fewest have a value that the selector wants. They have nothing in
    /// common. `None`: it wants no value.
    fn fewest(&self, selector: &Selector) -> Option<Vec<&[usize]>> {
        let wanted = selector.wanted().filter_map(|(key, values)| {
            let by_value = self.lists.get(key);
            let lists = values?.iter().filter_map(|value| by_value?.get(&**value));
            Some(lists.map(Vec::as_slice).collect::<Vec<_>>())
        });
        wanted.min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>())
    }
}

/// The part of a sorted list that lies in a range.
fn within<'i>(list: &'i [usize], range: &Range<usize>) -> &'i [usize] {
    let start = list.partition_point(|number| *number < range.start);
    let end = list.partition_point(|number| *number < range.end);
    list.get(start..end).unwrap_or_default()
}
