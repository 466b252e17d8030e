// SPDX-License-Identifier: Apache-2.0
//
// Everything but text: see hymba/text/tokenizer.hpp (needs SentencePiece), text_stream.hpp and chat_template.hpp.
#pragma once

#include <hymba/core/macros.hpp>
#include <hymba/exec/policy.hpp>
#include <hymba/exec/team.hpp>
#include <hymba/fwd.hpp>
#include <hymba/io/emit_variant.hpp>
#include <hymba/io/open.hpp>
#include <hymba/model/batch.hpp>
#include <hymba/model/model.hpp>
#include <hymba/model/random_weights.hpp>
#include <hymba/model/session.hpp>
#include <hymba/variant/costs.hpp>
#include <hymba/variant/presets.hpp>
