//! Of an object that the linker has made: what the kernel gets of it, and nothing else.
//!
//! The agent parses the pods' object anew for each, and the kernel keeps what it is given with each. DWARF, which BTF is made
//! of, is most of the file; the linker keeps all maps of the library, whichever a program refers to; and BTF is needed
//! where it defines maps.

use object::build::elf::{Builder, Section, SectionData, SectionId, SymbolId};
use object::build::{ByteString, Error};
use object::elf::SHT_STRTAB;

/// The sections of map definitions, in the form of aya and in that of BTF.
const MAPS: [&[u8]; 2] = [b"maps", BTF_MAPS];
const BTF_MAPS: &[u8] = b".maps";

/// The object without DWARF, without maps that no program refers to, and without BTF where none of its maps is left.
pub(crate) fn bare(object: &[u8]) -> Result<Vec<u8>, Error> {
    let mut elf = Builder::read(object)?;
    delete_sections(&mut elf, |section| is_about(section, b".debug_"));
    let used = used_symbols(&elf);
    let maps: Vec<SectionId> = elf
        .sections
        .iter()
        .filter(|section| MAPS.contains(&section.name.as_slice()))
        .map(Section::id)
        .collect();
    let is_map = |section: Option<SectionId>| section.is_some_and(|section| maps.contains(&section));
    for symbol in &mut elf.symbols {
        symbol.delete = is_map(symbol.section) && !used.contains(&symbol.id());
    }
    let left: Vec<SectionId> =
        elf.symbols.iter().filter(|symbol| !symbol.delete).filter_map(|symbol| symbol.section).collect();
    delete_sections(&mut elf, |section| maps.contains(&section.id()) && !left.contains(&section.id()));
    if !elf.sections.iter().any(|section| !section.delete && section.name.as_slice() == BTF_MAPS) {
        delete_sections(&mut elf, |section| is_about(section, b".BTF"));
    }
    // LLVM has one table for the names of symbols and sections; the builder wants two.
    let names = elf.sections.add();
    names.name = ByteString::from(".shstrtab");
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut bare = Vec::new();
    elf.write(&mut bare)?;
    Ok(bare)
}

fn delete_sections(elf: &mut Builder<'_>, is_unneeded: impl Fn(&Section<'_>) -> bool) {
    for section in &mut elf.sections {
        section.delete |= is_unneeded(section);
    }
}

/// Whether it is a section of that name, or its relocations.
fn is_about(section: &Section<'_>, name: &[u8]) -> bool {
    let of = section.name.as_slice();
    of.strip_prefix(b".rel").unwrap_or(of).starts_with(name)
}

/// What the programs refer to.
fn used_symbols(elf: &Builder<'_>) -> Vec<SymbolId> {
    let mut used = Vec::new();
    for section in elf.sections.iter().filter(|section| !section.delete && !is_about(section, b".BTF")) {
        if let SectionData::Relocation(relocations) = &section.data {
            used.extend(relocations.iter().filter_map(|relocation| relocation.symbol));
        }
    }
    used
}
