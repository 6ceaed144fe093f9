"""The rules that make this container a door that opens inwards only. Pure: an interface's name in, nft's text out."""


def rules(front: str) -> str:
    """nftables rules for a container whose interface `front` is the one that the host's published ports arrive on.

    Outwards, only answers leave: no connection, datagram or query begins here. Inwards, nobody on the inner networks
    may use this container's ports: what came that way would look, to the service behind, as if it came from the host.
    See https://wiki.nftables.org/wiki-nftables/index.php/Matching_connection_tracking_stateful_metainformation.
    """
    return f"""\
table inet edge
delete table inet edge
table inet edge {{
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{front}" ct state established,related accept
    oifname "{front}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != {{ "lo", "{front}" }} ct state new drop
  }}
}}
"""
