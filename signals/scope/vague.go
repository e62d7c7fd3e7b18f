package scope

import (
	"strings"
	"unicode"
)

// leastWords is how many different words that say something a scope must have to be judged by; of scripts that do not part their words, leastLetters.
const (
	leastWords   = 2
	leastLetters = 10
)

// A Vagueness says why a scope cannot be judged by.
type Vagueness string

// Why a scope cannot be judged by; "" is none of it.
const (
	NoScope    Vagueness = "no_scope"
	VagueScope Vagueness = "vague_scope"
)

// emptyWords say nothing about what a workload is for: articles and prepositions, and words under which everything falls.
var emptyWords = wordSet(`
the and for with that this from into its not only may can will shall must should does has have are was were been being but also any all each every other such than then them they
their there here what which when where who how why our your his her out off own per via etc
assistant assistants chatbot bot agent model llm general generic generally purpose multipurpose help helps helpful helping useful user users people person anyone everyone anybody someone
customer customers client clients employee employees staff team teams company business internal
anything everything something whatever whichever whenever things thing stuff task tasks work works job jobs request requests requested question questions answer answers answering
ask asks asked prompt prompts do doing done make makes use uses used using need needs needed want wants like likes various different many several
test tests testing todo tbd none null unknown production staging development service account workload application app system tool tools
allowed permitted possible necessary appropriate relevant related good best safe properly
der die das und oder für mit von dem den des ein eine einen einem einer nicht nur darf kann soll muss alles alle allen jede jeder jedes etwas irgendwas aufgaben aufgabe hilft helfen assistent
nutzer benutzer kunden fragen frage beantwortet
les des une pour avec dans sur par est pas que qui tout tous toute toutes peut doit assistant général générale aide aider utilisateurs questions tâches tâche
los las una uno para con por del que todo todos toda todas puede debe cualquier cosa cosas asistente ayuda ayudar usuarios preguntas tareas tarea
`)

func wordSet(s string) map[string]bool {
	set := map[string]bool{}
	for w := range strings.FieldsSeq(s) {
		set[w] = true
	}
	return set
}

// Vague says whether a scope is too little to judge by. The rule: it needs two different words of three letters or more that are neither grammar nor
// words under which everything falls ("anything", "helpful assistant", "tasks"); in scripts without spaces, ten letters.
func Vague(scope string) Vagueness {
	if strings.TrimSpace(scope) == "" {
		return NoScope
	}
	said, unspaced := map[string]bool{}, map[rune]bool{}
	for _, word := range strings.FieldsFunc(strings.ToLower(scope), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsMark(r) && !unicode.IsDigit(r) }) {
		letters := 0
		for _, r := range word {
			if unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar) {
				unspaced[r] = true
			} else {
				letters++
			}
		}
		if letters >= 3 && !emptyWords[word] {
			said[word] = true
		}
	}
	if len(said) >= leastWords || len(unspaced) >= leastLetters {
		return ""
	}
	return VagueScope
}

// Text says it to who may write a better scope.
func (v Vagueness) Text() string {
	switch v {
	case NoScope:
		return "No intended scope is stated, so nothing can be judged."
	case VagueScope:
		return "The intended scope is too vague to judge by: name what the workload reads, what it makes, for whom, and what it does not do."
	}
	return ""
}
